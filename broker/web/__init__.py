"""The web page and the HTTP API: ``trifid web`` (extra ``web``); nothing of the service imports it.

``index`` keeps annotations, which the state in Redis has not; ``follow`` fills it from Kafka; ``objects`` reads light
curves and spectra from the state; ``api`` and ``pages`` answer requests; ``app`` puts them together.
"""
