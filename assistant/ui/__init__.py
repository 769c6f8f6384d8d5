"""The browser chat: a page of our own on Gradio's server.

Gradio serves, queues and streams (``gradio.Server``, its API engine on FastAPI) and makes the share link. The page
itself is plain HTML, CSS and JavaScript in ``static/``, with no build step and no library: Gradio's own components
need inline scripts and styles, which a strict content security policy forbids, and hold a session's messages in RAM.
The only package that imports Gradio.
"""
