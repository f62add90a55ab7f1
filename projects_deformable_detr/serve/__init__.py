"""Serves a `Detector` over HTTP: a web page, ``POST /detect``, ``POST /explain`` and metrics."""
