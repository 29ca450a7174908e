"""The bundle on disk: its manifest, the integrity of its files, and its proof. Bundles are untrusted input."""

from __future__ import annotations

from .bundle import Bundle, default_bundle_path
from .manifest import SCHEMA, Manifest, canonical_json, manifest_digest

__all__ = ["SCHEMA", "Bundle", "Manifest", "canonical_json", "default_bundle_path", "manifest_digest"]
