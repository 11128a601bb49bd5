"""Which librdkafka properties ``kafka.options`` may set: those that only tune, log or secure a connection.

What exactly-once delivery, the accounting of alerts and bounded memory rest on is decided by Trifid, from settings of
its own. The list says what is allowed, not what is forbidden: a property that nobody has thought about is refused.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

_TUNING: Final = """
client.id client.rack client.dns.lookup debug log_level log.thread.name log.connection.close enable.metrics.push
enable.random.seed check.crcs

socket.timeout.ms socket.blocking.max.ms socket.send.buffer.bytes socket.receive.buffer.bytes
socket.keepalive.enable socket.nagle.disable socket.max.fails socket.connection.setup.timeout.ms
broker.address.ttl broker.address.family connections.max.idle.ms reconnect.backoff.jitter.ms reconnect.backoff.ms
reconnect.backoff.max.ms retry.backoff.ms retry.backoff.max.ms api.version.request.timeout.ms
topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.sparse topic.metadata.propagation.max.ms
coordinator.query.interval.ms

message.copy.max.bytes receive.message.max.bytes queued.min.messages fetch.wait.max.ms fetch.queue.backoff.ms
fetch.min.bytes fetch.error.backoff.ms queue.buffering.max.messages queue.buffering.max.ms linger.ms
queue.buffering.backpressure.threshold compression.codec compression.type compression.level batch.num.messages
batch.size sticky.partitioning.linger.ms partitioner

ssl.cipher.suites ssl.curves.list ssl.sigalgs.list ssl.certificate.pem https.ca.location https.ca.pem ssl.ca.pem
ssl.ca.certificate.stores ssl.crl.location ssl.keystore.location ssl.providers ssl.engine.location ssl.engine.id
enable.ssl.certificate.verification ssl.endpoint.identification.algorithm

sasl.kerberos.service.name sasl.kerberos.principal sasl.kerberos.kinit.cmd sasl.kerberos.keytab
sasl.kerberos.min.time.before.relogin enable.sasl.oauthbearer.unsecure.jwt sasl.oauthbearer.method
sasl.oauthbearer.client.id sasl.oauthbearer.client.credentials.client.id sasl.oauthbearer.scope
sasl.oauthbearer.extensions sasl.oauthbearer.token.endpoint.url sasl.oauthbearer.sub.claim.name
sasl.oauthbearer.grant.type sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.private.key.file
sasl.oauthbearer.assertion.file sasl.oauthbearer.assertion.claim.aud sasl.oauthbearer.assertion.claim.exp.seconds
sasl.oauthbearer.assertion.claim.iss sasl.oauthbearer.assertion.claim.jti.include
sasl.oauthbearer.assertion.claim.nbf.seconds sasl.oauthbearer.assertion.claim.sub
sasl.oauthbearer.assertion.jwt.template.file sasl.oauthbearer.metadata.authentication.type
"""
ALLOWED: Final = frozenset(_TUNING.split())
"""Those of librdkafka 2.16 (its CONFIGURATION.md) that promise nothing and keep nothing."""

_SETTINGS: Final = {
    "kafka.bootstrap_servers": "bootstrap.servers metadata.broker.list",
    "kafka.security_protocol": "security.protocol",
    "kafka.sasl_mechanism": "sasl.mechanism sasl.mechanisms",
    "kafka.sasl_username": "sasl.username",
    "kafka.ssl_ca_location": "ssl.ca.location",
    "kafka.ssl_certificate_location": "ssl.certificate.location",
    "kafka.ssl_key_location": "ssl.key.location",
    "kafka.input_topics": "topic.blacklist",
    "kafka.create_topics and kafka.create_input_topics": "allow.auto.create.topics",
    "kafka.metadata_refresh_s": "topic.metadata.refresh.interval.ms metadata.max.age.ms",
    "kafka.group_id": "group.id",
    "kafka.static_membership and kafka.worker_id": "group.instance.id",
    "kafka.group_protocol": "group.protocol group.protocol.type group.remote.assignor partition.assignment.strategy",
    "kafka.session_timeout_s": "session.timeout.ms heartbeat.interval.ms",
    "kafka.max_poll_interval_s": "max.poll.interval.ms",
    "kafka.group_id and kafka.worker_id": "transactional.id",
    "kafka.transaction_timeout_s": "transaction.timeout.ms message.timeout.ms delivery.timeout.ms request.timeout.ms",
    "kafka.delivery": (
        "enable.idempotence acks request.required.acks retries message.send.max.retries max.in.flight "
        "max.in.flight.requests.per.connection enable.gapless.guarantee queuing.strategy isolation.level "
        "enable.auto.commit auto.commit.enable auto.commit.interval.ms enable.auto.offset.store offset.store.method "
        "offset.store.path offset.store.sync.interval.ms auto.offset.reset"
    ),
    "kafka.max_message_bytes": "message.max.bytes fetch.message.max.bytes max.partition.fetch.bytes",
    "kafka.consumer_queue_mib": "queued.max.messages.kbytes fetch.max.bytes",
    "kafka.producer_queue_mib": "queue.buffering.max.kbytes",
    "kafka.unreachable_limit_s": "metadata.recovery.strategy metadata.recovery.rebootstrap.trigger.ms",
}
_SETTING_OF: Final = {name: setting for setting, names in _SETTINGS.items() for name in names.split()}
_SECRET: Final = re.compile(
    r"password|secret|passphrase|^ssl[._]key([._]pem)?$|private\.key\.pem|oauthbearer\.config", re.IGNORECASE
)


def refusal(name: str) -> str | None:
    """Why ``kafka.options`` may not have the property ``name``, and what to do; None where it may.

    librdkafka takes the names of properties of topics with ``topic.`` before them, too, and confluent_kafka those in
    ``default.topic.config``.
    """
    if name in ALLOWED:
        return None
    if _SECRET.search(name):
        return f"{name} is a secret: use the setting of its own"
    plain = name.strip().lower()
    while plain not in ALLOWED and plain not in _SETTING_OF and (bare := re.sub(r"^\{?topic\}?\.", "", plain)) != plain:
        plain = bare
    if setting := _SETTING_OF.get(plain):
        return f"{name} is what delivery, accounting or memory rests on, and not to be set here: use {setting}"
    if plain in ALLOWED:
        return f"{name} is not how librdkafka spells it: write {plain}"
    near = difflib.get_close_matches(plain, ALLOWED, n=1, cutoff=0.8)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name} is none of the properties that may be set here (docs/delivery.md){hint}"
