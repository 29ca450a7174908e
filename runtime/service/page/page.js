"use strict";
const $ = (id) => document.getElementById(id);
const shownByBrowsers = ["png", "jpg", "webp", "avif"];
let picture = null; // the File that was chosen last
let running = null; // the AbortController of the request under way
const addresses = {}; // blob addresses, which are freed when they are replaced

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function address(name, blob) {
  if (addresses[name]) URL.revokeObjectURL(addresses[name]);
  addresses[name] = URL.createObjectURL(blob);
  return addresses[name];
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function busy(on) {
  $("cancel").disabled = !on;
  $("again").disabled = on || picture === null;
  $("progress").hidden = !on;
  if (on) $("progress").removeAttribute("value");
}

function follow(id) {
  const events = new EventSource(`v1/progress/${id}`);
  events.onmessage = (event) => {
    const { done, total } = JSON.parse(event.data);
    $("progress").max = total;
    $("progress").value = done;
    say(`${done} of ${total} tiles`);
  };
  events.onerror = () => events.close();
  return events;
}

async function enlarge() {
  if (picture === null) return;
  if (running) running.abort();
  const own = (running = new AbortController());
  const id = newId();
  const events = follow(id);
  busy(true);
  $("download").hidden = true;
  say("Sending …");
  const query = new URLSearchParams({ model: $("model").value, format: $("format").value });
  const started = performance.now();
  try {
    const answer = await fetch(`v1/upscale?${query}`, {
      method: "POST",
      body: picture,
      headers: { "X-Request-ID": id, "Content-Type": picture.type || "application/octet-stream" },
      signal: own.signal,
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
      const wait = answer.headers.get("Retry-After");
      throw new Error(problem.error + (wait && answer.status !== 429 ? ` (again in ${wait} s)` : ""));
    }
    const blob = await answer.blob();
    await show(blob, answer.headers.get("RDSR-Warning"), performance.now() - started);
  } catch (error) {
    if (running === own) say(error.name === "AbortError" ? "Cancelled." : error.message, error.name !== "AbortError");
  } finally {
    events.close();
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

async function show(blob, warning, milliseconds) {
  const format = $("format").value;
  const link = $("download");
  link.href = address("after", blob);
  link.download = `${picture.name.replace(/\.[^.]*$/, "") || "picture"}-larger.${format}`;
  link.hidden = false;
  const kept = `${(blob.size / 1024).toFixed(0)} KiB in ${(milliseconds / 1000).toFixed(1)} s`;
  const note = warning ? ` (${warning})` : "";
  if (!shownByBrowsers.includes(format)) {
    $("result").hidden = true;
    say(`Done: ${kept}. Browsers do not show this format: download it.${note}`);
    return;
  }
  $("after").src = link.href;
  await $("after").decode();
  $("result").hidden = false;
  $("before").src = address("before", picture);
  const seen = await $("before").decode().then(() => true, () => false);
  $("before").hidden = !seen;
  $("stack").classList.toggle("shown", seen);
  cut();
  const size = `${$("after").naturalWidth}×${$("after").naturalHeight}`;
  say(`Done: ${size}, ${kept}.${seen ? "" : " This browser cannot show the original."}${note}`);
}

// Before and after meet at the slider's share of what can be seen, wherever the picture is scrolled to.
function cut() {
  const seen = Math.min($("view").clientWidth, $("stack").offsetWidth);
  $("stack").style.setProperty("--cut", `${Math.round($("view").scrollLeft + ($("slider").value / 100) * seen)}px`);
}

function take(file) {
  if (!file) return;
  picture = file;
  enlarge();
}

$("file").addEventListener("change", () => take($("file").files[0]));
$("again").addEventListener("click", enlarge);
$("cancel").addEventListener("click", () => running && running.abort());
$("options").addEventListener("submit", (event) => event.preventDefault());
$("slider").addEventListener("input", cut);
$("view").addEventListener("scroll", cut);
window.addEventListener("resize", cut);
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});

fetch("v1/models")
  .then((answer) => answer.json())
  .then(({ models }) => {
    for (const { name, scale } of models) $("model").add(new Option(`${name} (×${scale})`, name));
  })
  .catch(() => say("The server does not answer.", true));
