"""Beyond one machine (extra `[ray]`): files at fsspec addresses, a folder as a Ray Data job, the service on Ray Serve."""
