"""HTTP service: a photo or features in, a caption out, requests captioned in batches.

`app.make_app` returns an ASGI application, `server.run` serves it; docs/service.md describes both.
"""
