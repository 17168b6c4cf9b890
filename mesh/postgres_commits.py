"""Commits of many invocations in one round trip to PostgreSQL: a function of the database carries them out.

What always holds: the commits of a group are one transaction and one sync of the server, and each is judged for
itself: one that is refused leaves nothing behind, and does not concern the others. All comparisons are part of the
function, so that the server waits for no process in the midst of a transaction: one that stands still holds nobody up.
What could not be told apart in one go is not in one group: see `choose`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from penstock.mesh.store import (
    Commit,
    Committed,
    Kept,
    Outgoing,
    VersionMismatch,
    encode_outgoing,
    encode_row,
    lane_of,
)

BYTES_MAX: Final = 4 << 20
"""Of the states in one group: each commit of it waits for all of them."""

FENCED: Final = "PEN21"
"""What a function raises for a session that was fenced: an SQLSTATE of our own."""
LOCK: Final = 0x70656E73
"""The first half of all our advisory locks; the second is a session, or what the store keeps beside those."""

_CHANGED: Final = 1
_ANSWERED: Final = 2

FUNCTIONS: Final = f"""
CREATE OR REPLACE FUNCTION allow(writer integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({LOCK}, writer);
    -- A statement of its own: it sees what was committed while the lock was waited for.
    IF NOT EXISTS (SELECT FROM sessions WHERE number = writer AND ended_ms = 0) THEN
        RAISE EXCEPTION 'session % is fenced', writer USING ERRCODE = '{FENCED}';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION fence(writer integer, now_ms bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({LOCK}, writer);
    UPDATE sessions SET ended_ms = now_ms WHERE number = writer AND ended_ms = 0;
END $$;

CREATE OR REPLACE FUNCTION carry_out(
    writer integer,
    typenames text[], ids bytea[], expected bigint[], changes boolean[], new_values bytea[],
    keys bytea[], statuses integer[], bodies bytea[], untils bigint[],
    row_of integer[], row_keys bytea[], row_values bytea[],
    promise_of integer[], promise_names bytea[],
    token_of integer[], called_back bytea[],
    message_of integer[], lanes bigint[], dues bigint[], tokens bytea[], messages_data bytea[],
    emitted_of integer[], egresses text[], emitted_data bytea[],
    OUT refused integer[], OUT versions bigint[], OUT numbers bigint[], OUT owners integer[], OUT befores bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    found bigint[];
    index integer;
    wanted integer;
    written integer;
BEGIN
    PERFORM allow(writer);

    -- All are judged before anything is written, so that one that is refused leaves nothing behind.
    SELECT array_agg(judged.why ORDER BY judged.n), array_agg(judged.known ORDER BY judged.n),
        array_agg(CASE WHEN judged.why = {_CHANGED} THEN judged.known ELSE judged.fresh END ORDER BY judged.n)
    INTO refused, found, versions
    FROM (
        SELECT looked.n, looked.known, looked.fresh,
            CASE WHEN looked.known <> looked.wanted THEN {_CHANGED} WHEN looked.answered THEN {_ANSWERED} ELSE 0 END
                AS why
        FROM (
            SELECT c.n, c.wanted, CASE WHEN c.changing THEN nextval('versions') END AS fresh,
                coalesce((SELECT version FROM state WHERE typename = c.typename AND id = c.id), 0) AS known,
                EXISTS (SELECT FROM answers a WHERE a.typename = c.typename AND a.id = c.id AND a.key = c.key)
                    AS answered
            FROM unnest(typenames, ids, expected, changes, keys) WITH ORDINALITY
                AS c (typename, id, wanted, changing, key, n)
        ) AS looked
    ) AS judged;

    -- What others change meanwhile is neither overwritten nor waited out: all is rolled back, and judged again.
    wanted := (SELECT count(*) FROM unnest(refused, changes) AS c (why, changing) WHERE c.why = 0 AND c.changing);
    IF wanted > 0 THEN
        UPDATE state SET version = c.fresh, value = coalesce(c.new_value, state.value)
        FROM unnest(refused, changes, typenames, ids, found, versions, new_values)
            AS c (why, changing, typename, id, known, fresh, new_value)
        WHERE c.why = 0 AND c.changing AND c.known <> 0
            AND state.typename = c.typename AND state.id = c.id AND state.version = c.known;
        GET DIAGNOSTICS written = ROW_COUNT;
        wanted := wanted - written;
    END IF;
    IF wanted > 0 THEN
        INSERT INTO state (typename, id, version, value)
        SELECT c.typename, c.id, c.fresh, coalesce(c.new_value, '')
        FROM unnest(refused, changes, typenames, ids, found, versions, new_values)
            AS c (why, changing, typename, id, known, fresh, new_value)
        WHERE c.why = 0 AND c.changing AND c.known = 0
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS written = ROW_COUNT;
        wanted := wanted - written;
    END IF;
    IF wanted > 0 THEN
        RAISE EXCEPTION 'an address was changed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;

    wanted := (SELECT count(*) FROM unnest(refused, keys) AS c (why, key) WHERE c.why = 0 AND c.key IS NOT NULL);
    IF wanted > 0 THEN
        INSERT INTO answers (typename, id, key, status, body, until_ms)
        SELECT c.typename, c.id, c.key, c.status, c.body, c.until_ms
        FROM unnest(refused, typenames, ids, keys, statuses, bodies, untils)
            AS c (why, typename, id, key, status, body, until_ms)
        WHERE c.why = 0 AND c.key IS NOT NULL
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written < wanted THEN
            RAISE EXCEPTION 'a key was answered meanwhile' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;

    IF cardinality(row_of) > 0 THEN
        DELETE FROM rows USING unnest(row_of, row_keys, row_values) AS r (of, key, value)
        WHERE refused[r.of] = 0 AND r.value IS NULL
            AND rows.typename = typenames[r.of] AND rows.id = ids[r.of] AND rows.key = r.key;
        INSERT INTO rows (typename, id, key, value)
        SELECT typenames[r.of], ids[r.of], r.key, r.value
        FROM unnest(row_of, row_keys, row_values) AS r (of, key, value)
        WHERE refused[r.of] = 0 AND r.value IS NOT NULL
        ON CONFLICT (typename, id, key) DO UPDATE SET value = excluded.value;
    END IF;

    -- Without state and without rows, an address is not there.
    IF EXISTS (SELECT FROM unnest(changes, new_values) AS c (changing, new_value)
            WHERE c.changing AND coalesce(c.new_value, '') = '') THEN
        FOR index IN
            DELETE FROM state USING unnest(refused, changes, typenames, ids, new_values) WITH ORDINALITY
                AS c (why, changing, typename, id, new_value, n)
            WHERE c.why = 0 AND c.changing AND coalesce(c.new_value, '') = ''
                AND state.typename = c.typename AND state.id = c.id AND state.value = ''
                AND NOT EXISTS (SELECT FROM rows WHERE rows.typename = c.typename AND rows.id = c.id)
            RETURNING c.n
        LOOP
            versions[index] := 0;
        END LOOP;
    END IF;

    IF cardinality(promise_of) > 0 THEN
        DELETE FROM promises USING unnest(promise_of, promise_names) AS p (of, name)
        WHERE refused[p.of] = 0 AND promises.typename = typenames[p.of] AND promises.id = ids[p.of]
            AND promises.name = p.name;
    END IF;
    IF cardinality(token_of) > 0 THEN
        DELETE FROM messages USING unnest(token_of, called_back) AS t (of, token)
        WHERE refused[t.of] = 0 AND messages.typename = typenames[t.of] AND messages.sender = ids[t.of]
            AND messages.token = t.token AND messages.token <> '';
    END IF;

    -- A lane stays with whoever has what is before: two who deliver could change the order. Its last message is locked,
    -- so that it is not adopted at the same time.
    IF cardinality(message_of) > 0 THEN
        WITH joining AS MATERIALIZED (
            SELECT m.*, nextval('numbers') AS number, coalesce(last.session, writer) AS owner,
                coalesce(last.number, 0) AS before
            FROM unnest(message_of, lanes, dues, tokens, messages_data) WITH ORDINALITY
                AS m (of, lane, due_ms, token, data, n)
            LEFT JOIN LATERAL (
                SELECT number, session FROM messages WHERE lane = m.lane AND due_ms = 0 AND m.due_ms = 0
                ORDER BY number DESC LIMIT 1 FOR SHARE
            ) AS last ON true
            WHERE refused[m.of] = 0
        ), joined AS (
            INSERT INTO messages (number, session, lane, due_ms, typename, sender, token, data)
            SELECT number, owner, lane, due_ms, typenames[of], ids[of], token, data FROM joining
        )
        SELECT array_agg(number ORDER BY n), array_agg(owner ORDER BY n), array_agg(before ORDER BY n)
        INTO numbers, owners, befores FROM joining;
    END IF;

    IF cardinality(emitted_of) > 0 THEN
        INSERT INTO emitted (egress, typename, sender, data)
        SELECT e.egress, typenames[e.of], ids[e.of], e.data
        FROM unnest(emitted_of, egresses, emitted_data) WITH ORDINALITY AS e (of, egress, data, n)
        WHERE refused[e.of] = 0 ORDER BY e.n;
    END IF;
END $$;
"""

STATEMENT: Final = (
    "SELECT * FROM carry_out(%s::integer, "
    "%b::text[], %b::bytea[], %s::bigint[], %s::boolean[], %b::bytea[], "
    "%b::bytea[], %s::integer[], %b::bytea[], %s::bigint[], "
    "%s::integer[], %b::bytea[], %b::bytea[], "
    "%s::integer[], %b::bytea[], "
    "%s::integer[], %b::bytea[], "
    "%s::integer[], %s::bigint[], %s::bigint[], %b::bytea[], %b::bytea[], "
    "%s::integer[], %b::text[], %b::bytea[])"
)


def choose(waiting: Sequence[Commit]) -> list[bool]:
    """Which of the commits that wait are carried out together: all of one session, but not two that change the same
    address, answer the same key, or call back what an address has sent."""
    session = waiting[0].session
    taken: set[tuple[object, ...]] = set()
    bytes_left = BYTES_MAX
    chosen = []
    for commit in waiting:
        touched = list(_touched(commit))
        fits = bytes_left > 0 and commit.session == session and taken.isdisjoint(touched)
        if fits:
            bytes_left -= len(commit.value or b"")
        taken.update(touched)  # Also of one that has to wait: nobody behind it goes before it.
        chosen.append(fits)
    return chosen


def _touched(commit: Commit) -> Iterator[tuple[object, ...]]:
    if commit.changes_state or commit.version is not None:
        yield commit.typename, commit.id
    if commit.key and commit.answer is not None:
        yield commit.typename, commit.id, commit.key
    if commit.cancelled or any(outgoing.token for outgoing in commit.outgoing):
        yield commit.typename, commit.id, "tokens", ""


def in_steps(commits: Sequence[Commit]) -> Iterator[list[Commit]]:
    """Commits that are made in this order, in groups as `choose` has them. All expect what is there before the first,
    so that those behind have nothing more to compare."""
    left, compared = list(commits), set[object]()
    while left:
        chosen = [*choose(left), False]
        step, left = left[: chosen.index(False)], left[chosen.index(False) :]
        yield [replace(commit, version=None) if commit.address in compared else commit for commit in step]
        compared.update(commit.address for commit in step)


class Group:
    """The arguments of `carry_out` for some commits of one session, and what it returns in the words of the store."""

    def __init__(self, commits: Sequence[Commit]) -> None:
        self._commits = commits
        self._messages: list[tuple[int, Outgoing, int]] = []
        """With the index of their commit, and their lane."""
        self._tokens: list[tuple[int, str]] = []
        for index, commit in enumerate(commits):
            self._tokens += ((index, token) for token in commit.cancelled)
            for outgoing in _last_of_tokens(commit.outgoing):
                if outgoing.token:
                    self._tokens.append((index, outgoing.token))
                self._messages.append((index, outgoing, lane_of(commit.address, outgoing)))

    @property
    def arguments(self) -> tuple[object, ...]:
        commits = self._commits
        answers = [commit.answer if commit.key else None for commit in commits]
        rows = [(of, *row) for of, commit in enumerate(commits, 1) for row in commit.rows.items()]
        promises = [(of, name) for of, commit in enumerate(commits, 1) for name in commit.promises]
        emitted = [(of, *each) for of, commit in enumerate(commits, 1) for each in commit.emitted]
        return (
            commits[0].session,
            [commit.typename for commit in commits],
            [commit.id.encode() for commit in commits],
            _numbers([commit.version for commit in commits]),
            _booleans([commit.changes_state for commit in commits]),
            [commit.value for commit in commits],
            [None if answer is None else commit.key.encode() for commit, answer in zip(commits, answers, strict=True)],
            _numbers([None if answer is None else answer.status for answer in answers]),
            [None if answer is None else answer.body for answer in answers],
            _numbers([commit.answer_until_ms for commit in commits]),
            _numbers([of for of, _, _ in rows]),
            [key for _, key, _ in rows],
            [value for _, _, value in rows],
            _numbers([of for of, _ in promises]),
            [name.encode() for _, name in promises],
            _numbers([index + 1 for index, _ in self._tokens]),
            [token.encode() for _, token in self._tokens],
            _numbers([index + 1 for index, _, _ in self._messages]),
            _numbers([lane for _, _, lane in self._messages]),
            _numbers([outgoing.due_ms for _, outgoing, _ in self._messages]),
            [outgoing.token.encode() for _, outgoing, _ in self._messages],
            [encode_outgoing(outgoing) for _, outgoing, _ in self._messages],
            _numbers([of for of, _, _ in emitted]),
            [egress for _, egress, _ in emitted],
            [encode_row(row) for _, _, row in emitted],
        )

    def outcomes(
        self,
        refused: Sequence[int],
        versions: Sequence[int | None],
        numbers: Sequence[int] | None,
        owners: Sequence[int] | None,
        befores: Sequence[int] | None,
    ) -> list[Committed | VersionMismatch]:
        """What became of each commit."""
        kept: list[list[Kept]] = [[] for _ in self._commits]
        last: dict[int, int] = {}
        messages = [each for each in self._messages if not refused[each[0]]]
        for (index, outgoing, lane), number, owner, before in zip(
            messages, numbers or (), owners or (), befores or (), strict=True
        ):
            commit = self._commits[index]
            if not outgoing.due_ms:
                if owner == commit.session:
                    kept[index].append(Kept(number, commit.address, outgoing, 0, last.get(lane, before)))
                last[lane] = number
        return [
            _mismatch(commit, why, version or 0)
            if why
            else Committed(commit.version or 0 if version is None else version, own)
            for commit, why, version, own in zip(self._commits, refused, versions, kept, strict=True)
        ]


def _mismatch(commit: Commit, why: int, version: int) -> VersionMismatch:
    if why == _ANSWERED:
        return VersionMismatch(commit.address, f"key {commit.key!r} is answered already")
    return VersionMismatch(commit.address, f"it has version {version}, and {commit.version} was expected")


def _last_of_tokens(outgoing: Sequence[Outgoing]) -> Sequence[Outgoing]:
    """A token names one message: of several in one commit the last."""
    last = {each.token: each for each in outgoing if each.token}
    return [each for each in outgoing if not each.token or last[each.token] is each] if last else outgoing


# Arrays of numbers go as text: their type is that of the function, however small the numbers are.


def _numbers(numbers: Sequence[Any]) -> str:
    return "{" + ",".join(["NULL" if number is None else str(number) for number in numbers]) + "}"


def _booleans(booleans: Sequence[bool]) -> str:
    return "{" + ",".join(["t" if each else "f" for each in booleans]) + "}"
