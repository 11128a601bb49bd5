"""Messages of lists: mails, and calls of webhooks in the format of Slack's."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Any, Final
from urllib.parse import quote

from broker.config import NotifySettings, in_clear
from broker.watch import webhook
from broker.watch.outbox import Delivery
from broker.watch.webhook import WebhookError

_IN_A_CALL: Final = 20


class SendError(Exception):
    """A message that its receiver has not taken; the reason has no secrets in it."""


def send(delivery: Delivery, settings: NotifySettings) -> None:
    """Send one message; raises SendError."""
    if delivery.to == "webhook":
        url = str(delivery.watch["webhook"])
        try:
            webhook.post(url, call(delivery, settings), delivery.number, settings.webhook_networks, settings.timeout_s)
        except WebhookError as error:
            raise SendError(str(error)) from None
    else:
        _send_mail(mail(delivery, settings), settings)


def call(delivery: Delivery, settings: NotifySettings) -> dict[str, Any]:
    """What a webhook gets: ``text`` in Slack's mrkdwn, and the same as values under ``trifid``."""
    lines = [f"*{delivery.watch['name']}*: {_counted(delivery.matches)}"]
    for row in delivery.rows[:_IN_A_CALL]:
        link, name = _link(row, settings), _escaped(row["object_id"])
        label = f" ({_escaped(row['label'])})" if row["label"] else ""
        lines.append(
            f"\u2022 {f'<{link}|{name}>' if link else name}{label} {row['class_name']} {row['probability']:.2f}"
        )
    if delivery.matches > len(delivery.rows[:_IN_A_CALL]):
        lines.append(f"... {delivery.matches - len(delivery.rows[:_IN_A_CALL])} more: {delivery.watch['topic']}")
    return {"text": "\n".join(lines), "trifid": values(delivery)}


def values(delivery: Delivery) -> dict[str, Any]:
    """A message for programs."""
    return {
        "delivery": delivery.number,
        "list": delivery.watch["name"],
        "topic": delivery.watch["topic"],
        "count": delivery.matches,
        "matches": [
            {
                "id": row["event"],
                "survey": row["survey"],
                "objectId": row["object_id"],
                "class": row["class_name"],
                "probability": row["probability"],
                "anomalyScore": row["anomaly_score"],
                "ra": row["ra"],
                "dec": row["dec"],
                "label": row["label"],
            }
            for row in delivery.rows
        ],
    }


def mail(delivery: Delivery, settings: NotifySettings) -> EmailMessage:
    """A message as plain text; its Message-ID is the same in each attempt."""
    sender = settings.mail_from or ""
    message = EmailMessage(SMTP)
    message["From"] = sender
    message["To"] = str(delivery.watch["email"])
    message["Subject"] = f"Trifid: {delivery.watch['name']}: {_counted(delivery.matches)}"
    message["Message-ID"] = f"<{delivery.number}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Auto-Submitted"] = "auto-generated"
    message["X-Trifid-Delivery"] = delivery.number
    lines = [f"{_counted(delivery.matches)} of your list {delivery.watch['name']}.", ""]
    for row in delivery.rows:
        place = "" if row["ra"] is None else f"  {row['ra']:.5f} {row['dec']:+.5f}"
        label = f"  {row['label']}" if row["label"] else ""
        lines.append(f"{row['survey']}:{row['object_id']}  {row['class_name']} {row['probability']:.2f}{place}{label}")
        if link := _link(row, settings):
            lines.append(f"  {link}")
    if delivery.matches > len(delivery.rows):
        lines.append(f"... and {delivery.matches - len(delivery.rows)} more")
    lines += ["", f"All are in the Kafka topic {delivery.watch['topic']}."]
    message.set_content("\n".join(lines))
    return message


def _send_mail(message: EmailMessage, settings: NotifySettings) -> None:
    host, timeout = settings.smtp_host or "", settings.timeout_s
    context = ssl.create_default_context(cafile=settings.smtp_ca_file)
    try:
        server = (
            smtplib.SMTP_SSL(host, settings.smtp_port, timeout=timeout, context=context)
            if settings.smtp_security == "tls"
            else smtplib.SMTP(host, settings.smtp_port, timeout=timeout)
        )
        try:
            if settings.smtp_security == "starttls":
                server.starttls(context=context)
            if settings.smtp_user is not None:
                server.login(settings.smtp_user, in_clear(settings.smtp_password) or "")
            server.send_message(message)
        finally:
            # What fails after the server has taken the message would have it sent again.
            with suppress(OSError):
                server.quit()
            server.close()
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        raise SendError(f"mail server: {code} {text.decode('utf-8', 'replace')[:200]}") from None
    except smtplib.SMTPResponseException as error:
        given = error.smtp_error
        said = given.decode("utf-8", "replace") if isinstance(given, bytes) else str(given)
        raise SendError(f"mail server: {error.smtp_code} {said[:200]}") from None
    except OSError as error:  # smtplib's own are, without strerror
        raise SendError(f"mail server {host}: {error.strerror or str(error) or type(error).__name__}") from None


def _counted(matches: int) -> str:
    return f"{matches:,} new match{'' if matches == 1 else 'es'}"


def _link(row: Mapping[str, Any], settings: NotifySettings) -> str | None:
    if settings.public_url is None:
        return None
    return (
        f"{settings.public_url.rstrip('/')}/object/{quote(row['survey'], safe='')}/{quote(row['object_id'], safe='')}"
    )


def _escaped(text: str) -> str:
    """As Slack has it, so that no name is a link or calls anybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
