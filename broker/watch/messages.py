"""Messages of lists: mails, and calls of webhooks in the format of Slack's."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Any, Final
from urllib.parse import quote

from broker.config import NotifySettings, in_clear
from broker.watch import outputs, webhook
from broker.watch.deliveries import Delivery
from broker.watch.outputs import OutputError
from broker.watch.webhook import WebhookError

_IN_A_CALL: Final = 20
_AGAIN_S: Final = 0.5


class SendError(Exception):
    """A message that its receiver has not taken; the reason has no secrets in it."""

    answered: bool = True
    """As ``outputs.OutputError`` has it."""


def send(delivery: Delivery, settings: NotifySettings) -> None:
    """Send one message; raises SendError."""
    if delivery.to == "webhook" and delivery.watch["format"] is not None:
        try:
            outputs.send(delivery.watch, delivery.rows[0], delivery.number, settings)
        except OutputError as error:
            failed = SendError(str(error))
            failed.answered = error.answered
            raise failed from None
    elif delivery.to == "webhook":
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
    host, port, timeout = settings.smtp_host or "", settings.smtp_port, settings.timeout_s
    context = ssl.create_default_context(cafile=settings.smtp_ca_file)
    deadline = _Deadline(timeout)
    try:
        # Both connect, and read the server's greeting, before they are there.
        server = (
            _SecureServer(deadline, host, port, timeout=timeout, context=context)
            if settings.smtp_security == "tls"
            else _Server(deadline, host, port, timeout=timeout)
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
        if deadline.passed:
            raise SendError(f"mail server {host}: no answer within {timeout:g} s") from None
        raise SendError(f"mail server {host}: {error.strerror or str(error) or type(error).__name__}") from None
    finally:
        deadline.cancel()


class _Deadline:
    """Ends what a mail server takes too long for: a socket's own timeout begins anew with each byte."""

    def __init__(self, seconds: float) -> None:
        """It begins at once."""
        self.passed = False
        self._seconds, self._done = seconds, threading.Event()
        self._server: smtplib.SMTP | None = None
        threading.Thread(target=self._wait, name="mail deadline", daemon=True).start()

    def of(self, server: smtplib.SMTP) -> None:
        """Have it end what this server is at."""
        self._server = server

    def cancel(self) -> None:
        """All was in time."""
        self._done.set()

    def _wait(self) -> None:
        if self._done.wait(self._seconds):
            return
        self.passed = True
        while True:
            # While it connects there is none yet; that has a timeout of its own.
            if self._server is not None and (sock := self._server.sock) is not None:
                with suppress(OSError):
                    # Not SSLSocket's own, which has the other thread go on without encryption.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            if self._done.wait(_AGAIN_S):
                return


class _Server(smtplib.SMTP):
    def __init__(self, deadline: _Deadline, *given: Any, **named: Any) -> None:
        deadline.of(self)
        self._deadline = deadline
        try:
            super().__init__(*given, **named)
        except BaseException:
            self.close()
            raise

    def getreply(self) -> tuple[int, bytes]:
        """The server's, unless it was cut: that may be the beginning of another."""
        found = super().getreply()
        if self._deadline.passed:
            raise TimeoutError
        return found


class _SecureServer(_Server, smtplib.SMTP_SSL):
    """With TLS from the beginning."""


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
