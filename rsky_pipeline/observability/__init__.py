"""Every metric declared once, and the HTTP server that a worker exposes them on."""
