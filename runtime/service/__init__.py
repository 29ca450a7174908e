"""`rdsr serve`: upscaling over HTTP, with FastAPI on uvicorn (extra `[serve]`). `app.py` joins the modules."""
