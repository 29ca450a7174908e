"""Torch checkpoint → verified deployment bundle: `export.exporter.export_checkpoint` is the way in."""
