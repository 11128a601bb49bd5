"""Watchlists: what users want to be told of, matched with annotations, and put into topics, mails and webhooks."""
