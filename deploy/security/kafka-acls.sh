#!/usr/bin/env bash
# The least rights that Trifid's users need in Kafka. Run it again at any time: rights that are there stay.
#
#   KAFKA_ACLS="kafka-acls.sh --bootstrap-server kafka:9093 --command-config admin.properties" deploy/security/kafka-acls.sh
#
# Names are those of trifid.toml: kafka.input_topics, kafka.spectra_topic, kafka.group_id, publish.topic_prefix.
# Kafka lets whoever may Read or Write also Describe, and lets idempotent producers in that may Write anything, so
# that neither is given by itself.
set -euo pipefail

INPUT_TOPICS=${INPUT_TOPICS-alerts.ztf alerts.lsst}
SPECTRA_TOPIC=${SPECTRA_TOPIC-spectra}
GROUP=${GROUP-trifid}
PREFIX=${PREFIX-trifid}
SURVEYS=${SURVEYS-ztf lsst elasticc}
SERVICE=${SERVICE-User:trifid}
OPERATOR=${OPERATOR-User:trifid-operator}
SUBSCRIBER=${SUBSCRIBER-User:astronomer}
NOTIFY=${NOTIFY-User:trifid-notify} # of `trifid notify` (docs/watchlists.md); empty where nobody runs it
CREATE_TOPICS=${CREATE_TOPICS-yes} # "no" where kafka.create_topics is false

read -ra acls <<< "${KAFKA_ACLS:?see the head of this file}"
allow() { "${acls[@]}" --add --allow-principal "$@"; }

inputs=()
for topic in $INPUT_TOPICS $SPECTRA_TOPIC; do inputs+=(--topic "$topic"); done
published=() # without the dead letters, which are the operator's
for survey in $SURVEYS; do published+=(--topic "$PREFIX.$survey."); done

# The service: reads alerts and spectra as two groups, writes annotations and dead letters, in transactions.
allow "$SERVICE" --operation Read "${inputs[@]}" --group "$GROUP" --group "$GROUP-spectra"
allow "$SERVICE" --operation Write --resource-pattern-type prefixed --topic "$PREFIX." --transactional-id "$GROUP-"
if [ "$CREATE_TOPICS" = yes ]; then
  allow "$SERVICE" --operation Create --resource-pattern-type prefixed --topic "$PREFIX."
  if [ -n "$SPECTRA_TOPIC" ]; then allow "$SERVICE" --operation Create --topic "$SPECTRA_TOPIC"; fi
fi

# Subscribers: read what is published. Without --group, `trifid subscribe` makes up a group of this prefix.
allow "$SUBSCRIBER" --operation Read --resource-pattern-type prefixed "${published[@]}" --group trifid-subscriber-

# The operator: sends alerts and spectra (`trifid replay`, `trifid spectra send`), shows and replays dead letters. What
# was too large for a dead letter is fetched from the input topic.
allow "$OPERATOR" --operation Read --operation Write "${inputs[@]}"
allow "$OPERATOR" --operation Read --topic "$PREFIX.deadletter" --group "$GROUP-deadletter-replay"
allow "$OPERATOR" --operation Write --transactional-id "$GROUP-deadletter-replay"

# Users' lists: reads annotations in its own group; makes, fills and deletes the lists' topics.
if [ -n "$NOTIFY" ]; then
  allow "$NOTIFY" --operation Read --resource-pattern-type prefixed "${published[@]}" --group trifid-notify
  allow "$NOTIFY" --operation Create --operation Write --operation Delete \
    --resource-pattern-type prefixed --topic "$PREFIX.user."
fi
