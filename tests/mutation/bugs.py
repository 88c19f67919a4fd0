"""One-line bugs in the files that correctness rests on, and the tests that must notice each.

`slip` is a mistake that one makes; `malice` is one that somebody would choose who wants to lose, double or
forge data and not be found out. The text of a bug must occur exactly once in its file
(`tests/unit/test_mutations.py`): who changes the code changes its bugs along.
"""

from dataclasses import dataclass
from typing import Literal

ADMISSION = "rsky_pipeline/ingester/pipeline.py"
CHAIN = "rsky_pipeline/ingester/commits/validation.py"
STATES = "rsky_pipeline/ingester/commits/states.py"
RESYNC = "rsky_pipeline/ingester/commits/resync.py"
SIGNATURES = "rsky_pipeline/ingester/commits/signatures.py"
SEQUENCE = "rsky_pipeline/ingester/sequence.py"
WRITER = "rsky_pipeline/ingester/writer.py"
APPEND = "rsky_pipeline/streams/append.lua"
TRIM = "rsky_pipeline/streams/trim.lua"
ACKNOWLEDGE = "rsky_pipeline/streams/acknowledge.lua"
MOVE = "rsky_pipeline/streams/move_pending.lua"
FORGET = "rsky_pipeline/streams/remove_consumers.lua"
CONSUMER = "rsky_pipeline/streams/consumer.py"
PLAN = "rsky_pipeline/indexer/core/plan.py"
REVS = "rsky_pipeline/indexer/core/complete_revs.py"
DUPLICATES = "rsky_pipeline/indexer/core/duplicates.py"
APPLY = "rsky_pipeline/indexer/core/apply.py"
WRITE = "rsky_pipeline/indexer/core/write.py"
ACTORS = "rsky_pipeline/indexer/accounts/actors.py"
LOCKS = "rsky_pipeline/indexer/core/locks.py"
ISOLATION = "rsky_pipeline/database/isolation.py"
ATTEMPT = "rsky_pipeline/backfiller/attempt.py"
CHANGES = "rsky_pipeline/repos/changes.py"
STORED = "rsky_pipeline/repos/stored.py"
CLOSING = "rsky_pipeline/repos/entries.py"
STATUSES = "rsky_pipeline/indexer/accounts/statuses.py"
HOMES = "rsky_pipeline/ingester/commits/homes.py"
PURGE = "rsky_pipeline/indexer/accounts/purge.py"
LABELS = "rsky_pipeline/indexer/core/labels.py"
LABEL_PROOF = "rsky_pipeline/ingester/labels.py"
LABEL_RULES = "rsky_pipeline/atproto/labels.py"
SESSION = "rsky_pipeline/database/session.py"
CONNECTION = "rsky_pipeline/database/connection.py"
DIALER = "rsky_pipeline/network/connect.py"
GAP_REPAIR = "rsky_pipeline/ingester/listing/gap_repair.py"
MARKS = "rsky_pipeline/database/marks.py"
READ_AGAIN = "rsky_pipeline/streams/marks.py"
SELECTION = "rsky_pipeline/configuration/selection.py"
BLOCKS = "rsky_pipeline/database/selection.py"
PUBLISHED = "rsky_pipeline/streams/selection.py"
BLOCKING = "rsky_pipeline/operations/blocking.py"
PAIRING = "rsky_pipeline/health/pairing.py"
OFFICIAL = "rsky_pipeline/database/schema/official.py"
COMPARE = "rsky_pipeline/database/schema/compare.py"
REBUILD = "rsky_pipeline/operations/rebuild.py"
ROWS = "rsky_pipeline/operations/derived_rows.py"
FINDINGS = "rsky_pipeline/runtime/findings.py"
SELF_CHECK = "rsky_pipeline/health/self_check.py"
RULES = "rsky_pipeline/health/rules.py"
ADVICE = "rsky_pipeline/configuration/advice.py"
SEEN = "rsky_pipeline/indexer/seen.py"
GRPC = "rsky_pipeline/network/grpc.py"
FORMS = "rsky_pipeline/database/forms.py"
STATEMENTS = "rsky_pipeline/indexer/core/statements.py"

SUBJECTS = {
    "admission, resyncs, signatures": (ADMISSION, RESYNC, SIGNATURES),
    "chain, inversion, states of repos": (CHAIN, STATES),
    "sequence numbers and gaps": (SEQUENCE,),
    "writer and cursor": (WRITER,),
    "`append.lua`": (APPEND,),
    "trim and the other scripts": (TRIM, ACKNOWLEDGE, MOVE, FORGET),
    "consumer, poison, dead letters": (CONSUMER, APPLY),
    "plan": (PLAN, WRITE),
    "complete revs": (REVS,),
    "duplicates": (DUPLICATES,),
    "locks": (ACTORS, LOCKS),
    "isolation": (ISOLATION,),
    "repo jobs, retry decisions": (ATTEMPT,),
    "changes of a repo": (CHANGES, STORED, CLOSING),
    "hosting statuses, homes of accounts": (STATUSES, HOMES),
    "purges and their marks": (PURGE,),
    "labels: proof, order": (LABELS, LABEL_PROOF, LABEL_RULES),
    "sessions behind a pooler": (SESSION, CONNECTION),
    "guard of the dialler": (DIALER,),
    "gap repair": (GAP_REPAIR,),
    "lost transactions": (MARKS, READ_AGAIN),
    "blocking": (SELECTION, BLOCKS, PUBLISHED, BLOCKING),
    "Redis and database belong together": (PAIRING,),
    "official schemas": (OFFICIAL, COMPARE),
    "rebuild": (REBUILD, ROWS),
    "findings and advice": (FINDINGS, SELF_CHECK, RULES, ADVICE),
    "seen notifications": (SEEN, GRPC),
    "forms of tables, databases of others": (FORMS, STATEMENTS),
}

_INGESTER, _STREAMS = "tests/unit/ingester/", "tests/integration/streams/"
_RELAYS, _LIVE = (
    "tests/integration/ingester/test_relays.py",
    "tests/integration/ingester/test_live.py",
)
_STORE = "tests/integration/ingester/test_store.py"
_INDEXER, _BACKFILLER = "tests/integration/indexer/", "tests/integration/backfiller/"
T_CHAIN, T_COMMITS = _INGESTER + "test_chain.py", _INGESTER + "test_commits.py"
T_PROVEN, T_DISCOVERY = _INGESTER + "test_proven_frames.py", _INGESTER + "test_discovery.py"
T_RULES, T_RELAYS = _INGESTER + "test_rules.py", _INGESTER + "test_relays.py"
T_VERIFY, T_VECTORS = _INGESTER + "test_verify.py", _INGESTER + "test_vectors.py"
T_APPEND, T_TRIM = _STREAMS + "test_append.py", _STREAMS + "test_trim_and_lag.py"
T_CONSUMER, T_CONSUME = _STREAMS + "test_consumer.py", _STREAMS + "test_consume.py"
T_LETTERS = _STREAMS + "test_dead_letters.py"
T_PLAN, T_ISOLATION = "tests/unit/indexer/test_plan.py", "tests/unit/database/test_isolation.py"
T_FLOORS, T_DUPLICATES = _INDEXER + "test_floors.py", _INDEXER + "test_duplicates.py"
T_ACCOUNTS, T_REACTIONS = _INDEXER + "test_accounts.py", _INDEXER + "test_golden_reactions.py"
T_DECISION = "tests/unit/backfiller/test_retry_decision.py"
T_BACKFILLER = _BACKFILLER + "test_backfiller.py"
T_RECONCILIATION = _BACKFILLER + "test_reconciliation.py"
T_STATUSES, T_HOMES = "tests/unit/indexer/test_statuses.py", _INGESTER + "test_homes.py"
T_LOOKUPS = _INDEXER + "test_lookups.py"
T_LABEL_PROOF, T_LABEL_RULES = (
    _INGESTER + "test_label_proof.py",
    "tests/unit/atproto/test_labels.py",
)
T_POOLER = "tests/integration/database/test_pooler.py"
T_CONNECTION = "tests/integration/database/test_connection.py"
T_FORMS, T_ADOPTION = (
    "tests/integration/indexer/test_forms.py",
    "tests/integration/indexer/test_adoption.py",
)
T_CONNECT, T_HOSTS = "tests/unit/network/test_connect.py", "tests/unit/network/test_hosts.py"
T_GAPS, T_MARKS = (
    "tests/integration/ingester/test_relays.py",
    "tests/integration/database/test_marks.py",
)
T_GAP_TABLE = "tests/integration/ingester/test_gap_table.py"
T_SELECTION = "tests/unit/configuration/test_selection.py"
T_BLOCKS, T_BLOCK = (
    _INDEXER + "test_blocks.py",
    "tests/integration/operations/test_block_command.py",
)
T_BLOCKED_LIVE = "tests/integration/ingester/test_blocks.py"
T_BLOCKED_FRAMES = _INGESTER + "test_blocked_frames.py"
T_PAIRING, T_REBUILD = _INDEXER + "test_pairing.py", _INDEXER + "test_rebuild.py"
T_SCHEMA, T_OPT_OUTS = "tests/integration/database/test_schema.py", _INDEXER + "test_opt_outs.py"
T_FINDINGS = "tests/unit/health/test_rules.py"
T_ADVICE, T_GRPC = "tests/unit/test_advice.py", "tests/unit/network/test_grpc.py"
T_SEEN, T_SEEN_ROWS = "tests/unit/indexer/test_seen.py", _INDEXER + "test_seen.py"


@dataclass(frozen=True, slots=True)
class Bug:
    """A text of a file, the text that takes its place, and the tests of which one must fail."""

    name: str
    kind: Literal["slip", "malice"]
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _slip(name: str, file: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(name, "slip", file, old, new, tests)


def _malice(name: str, file: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(name, "malice", file, old, new, tests)


# fmt: off
_ADMISSION = (
    _slip("admit-replay", ADMISSION,
          "if is_replay(before, update.rev):", "if is_replay(None, update.rev):", T_CHAIN),
    _malice("admit-unverified", ADMISSION,
            "if frame.status is not None and frame.status is not SignatureStatus.VALID:",
            "if frame.status is SignatureStatus.FORGED:", T_PROVEN),
    _malice("admit-forged-records", ADMISSION,
            "            frame.clear()\n            if frame.status is SignatureStatus.NO_ACCOUNT:",
            "            if frame.status is SignatureStatus.NO_ACCOUNT:", T_PROVEN),
    _malice("admit-forged-rev", ADMISSION,
            "self.states.set(update.did, with_flag(before, OWED, True))",
            "self.states.set(update.did, with_flag(make_state(update.rev, update.data), OWED, True))",
            T_CHAIN),
    _malice("admit-inversion-ignored", ADMISSION,
            "if isinstance(tree, FetchReason):", "if tree is FetchReason.MISSING_NODE:",
            T_CHAIN, T_COMMITS, T_VECTORS),
    _malice("admit-inversion-written", ADMISSION,
            "            frame.clear()\n            self._counters.errors[tree.word] += 1",
            "            self._counters.errors[tree.word] += 1", T_CHAIN),
    _malice("admit-inversion-loses-deletions", ADMISSION,
            "self._resync(frame, update, tree, update.ops)",
            "self._resync(frame, update, tree, ())", T_CHAIN),
    _slip("admit-inversion-no-baseline", ADMISSION,
          "            self._take_over(frame, update, with_flag(state, DESYNCHRONIZED, True))\n", "",
          T_CHAIN),
    _slip("admit-break-not-fetched", ADMISSION,
          "problem = broken or update.problem", "problem = update.problem", T_CHAIN),
    _slip("admit-problem-not-fetched", ADMISSION,
          "problem = broken or update.problem", "problem = broken", T_COMMITS),
    _malice("admit-owed-never-paid", ADMISSION,
            "owed = before is not None and bool(before[8] & OWED)", "owed = False", T_CHAIN),
    _malice("admit-owed-forgotten", ADMISSION,
            "                state = with_flag(state, OWED, True)\n", "                pass\n",
            T_CHAIN),
    _slip("admit-owed-of-the-unproven", ADMISSION,
          "if not queued and before is not None and not before[8] & OWED:",
          "if queued and before is not None and not before[8] & OWED:", T_CHAIN),
    _malice("admit-too-big-loses-deletions", ADMISSION,
            "unwritten = update.ops if problem is FetchReason.TOO_BIG else ()", "unwritten = ()",
            T_COMMITS),
    _slip("admit-state-not-stored", ADMISSION,
          "        frame.state = self.states.set(update.did, state)\n",
          "        self.states.set(update.did, state)\n", T_DISCOVERY),
    _slip("admit-unseen-with-a-problem", ADMISSION,
          "if broken is FetchReason.UNSEEN and update.problem is None:",
          "if broken is FetchReason.UNSEEN:", T_DISCOVERY, T_COMMITS),
    _malice("admit-unseen-above-the-limit", ADMISSION,
            "        if not discovery.enabled:\n",
            "        if not discovery.enabled or discovery._rate._tokens < 1:\n", T_DISCOVERY),
    _slip("admit-unproven-without-limit", ADMISSION,
          "            self._counters.resyncs_owed += 1\n            return False\n",
          "            self._counters.resyncs_owed += 1\n", T_CHAIN),
    _malice("admit-put-off-counts-as-queued", ADMISSION,
            "        frame.clear()\n        self._shared.resyncs.discard(update.did)\n        try:",
            "        frame.clear()\n        try:",
            _INGESTER + "test_defects.py"),
    _malice("admit-stranger-beyond-the-limit", ADMISSION,
            '        for entry in self._converter.keep_raw(b"", "no_account", commit):\n            frame.add(entry)\n',
            "", T_PROVEN),
    _malice("account-copy-not-written", ADMISSION,
            "            if account.active is None:\n                frame.clear()\n",
            "            frame.clear()\n", T_RELAYS, T_DISCOVERY),
    _slip("account-inactive-not-noted", ADMISSION,
          "if is_inactive(state) == active:", "if is_inactive(state) != active:", T_DISCOVERY),
    _malice("account-back-without-having-gone", ADMISSION,
            "        if active:\n            self._queue(",
            "        if active and is_inactive(state):\n            self._queue(", T_DISCOVERY),
    _slip("account-state-not-read", ADMISSION,
          "_WITH_STATE = (*_UPDATES, AccountMessage)", "_WITH_STATE = _UPDATES",
          T_PROVEN, T_DISCOVERY),
    _malice("intake-cursor-of-the-damaged", ADMISSION,
            "        frame.seq, frame.again = covered, again\n",
            '        frame.seq, frame.again = getattr(message, "seq", covered), again\n', T_PROVEN),
    _slip("intake-gap-behind-its-cursor", ADMISSION,
          "first, gaps = ready[0], self._gap_entries", "first, gaps = ready[-1], self._gap_entries",
          T_PROVEN),
    _slip("intake-gap-without-size", ADMISSION,
          "                first.size += sum(len(entry.payload) for entry in gaps)\n", "", T_PROVEN),
    _malice("intake-admits-after-the-end", ADMISSION,
            "        if self._sink.closed:\n            return\n", "", T_PROVEN),
    _malice("intake-defect-is-valid", ADMISSION,
            "        return SignatureStatus.UNVERIFIED\n", "        return SignatureStatus.VALID\n",
            _INGESTER + "test_defects.py"),
    _malice("intake-check-that-raises-is-good", ADMISSION,
            "that follows a bad signature\n        return False",
            "that follows a bad signature\n        return True", T_PROVEN),
    _malice("intake-results-of-others", ADMISSION,
            "found[place] = result\n", "found[places[0]] = result\n", T_PROVEN),
    _slip("buffer-out-of-order", ADMISSION,
          "while frames and not frames[0].waits:", "while frames:", T_RULES),
    _slip("buffer-full-of-both", ADMISSION,
          ">= self._max_frames or self._bytes", ">= self._max_frames and self._bytes", T_RULES),
    _slip("buffer-bytes-drift", ADMISSION,
          "self._bytes -= frame.held", "self._bytes -= frame.size", T_RULES),
    _malice("dropped-states-stay", ADMISSION, "        self.states.forget()\n", "", T_CHAIN),
    _malice("dropped-copies-stay", ADMISSION, "        self.dedup.forget()\n", "", T_CHAIN),
    _malice("dropped-resyncs-stay", ADMISSION, "        self.resyncs.forget()\n", "", T_CHAIN),
)

_CHAIN = (
    _slip("chain-since-and-data", CHAIN,
          "update.since != rev_of(state) or (", "update.since != rev_of(state) and (", T_CHAIN),
    _malice("chain-prev-data-unread", CHAIN,
            "has_data(state, tree) is False)", "has_data(state, tree) is None)", T_CHAIN),
    _malice("chain-any-tree-inverts", CHAIN,
            "return before if before == message.prev_data else FetchReason.INVERSION",
            "return before", T_CHAIN, T_VECTORS, T_COMMITS),
    _malice("chain-missing-node-passes", CHAIN,
            "        return FetchReason.MISSING_NODE", "        return None", T_VECTORS, T_CHAIN),
    _malice("chain-hidden-deletion", CHAIN,
            "if look_up(blocks, commit.data, op.path) != op.cid:",
            "if op.cid and look_up(blocks, commit.data, op.path) != op.cid:", T_CHAIN, T_VECTORS),
    _malice("chain-stripped-is-whole", CHAIN,
            "elif tree is None and checked and knows_data(state):",
            "elif tree is None and not checked and knows_data(state):", T_CHAIN),
    _malice("chain-stripped-twice", CHAIN,
            "    if shows or (state is not None and state[8] & SHOWS_PREV_DATA):", "    if shows:",
            T_CHAIN),
    _malice("chain-first-by-its-word", CHAIN,
            "first = update.since is None and (not checked or tree == EMPTY_TREE)",
            "first = update.since is None", T_CHAIN),
    _slip("chain-sync-of-an-unknown-tree", CHAIN,
          "update.data is not None and has_data(state, update.data)",
          "update.data is not None and has_data(state, update.data) is not False", T_CHAIN),
    _slip("chain-replay-of-the-same-rev", CHAIN,
          'rev <= int.from_bytes(state[:8], "big")', 'rev < int.from_bytes(state[:8], "big")',
          T_CHAIN),
    _slip("chain-future", CHAIN,
          "> now + FUTURE_SECONDS", "> now + 2 * FUTURE_SECONDS", T_CHAIN),
    _malice("chain-commit-of-another", CHAIN,
            "if commit.did != message.did:", "if commit.did < message.did:", T_COMMITS),
    _slip("chain-another-root", CHAIN,
          "if type(message) is CommitMessage and root != message.commit:", "if not root:",
          T_COMMITS),
    _slip("states-newer-taken-for-written", STATES,
          "if self._unwritten.get(digest) == state:", "if digest in self._unwritten:", T_CHAIN),
    _malice("states-of-before-the-loss", STATES,
            "if generation != self._generation:", "if generation > self._generation:", T_CHAIN),
    _slip("states-forget-half", STATES, "        self._unwritten.clear()\n", "", T_CHAIN),
    _slip("resync-spared-for-ever", RESYNC,
          "return waiting >= enough and now - queued < self._pause", "return waiting >= enough",
          T_CHAIN),
    _malice("resync-deletions-of-one", RESYNC,
            "dict.fromkeys((*before.deleted, *job.deleted))", "dict.fromkeys(job.deleted)", T_CHAIN),
    _slip("resync-lower-rev", RESYNC,
          "rev=max(before.rev, job.rev)", "rev=job.rev", T_CHAIN),
    _malice("signature-unchecked", SIGNATURES,
            "if key is not None and verify_commit(commit, key):", "if key is not None:", T_VERIFY),
    _slip("signature-rotated-key-condemns", SIGNATURES,
          "return SignatureStatus.FORGED if self._refreshed.has(did) else None",
          "return SignatureStatus.FORGED", T_VERIFY),
    _slip("signature-missing-asked-once", SIGNATURES,
          "                    if force:\n                        break\n",
          "                    break\n", T_VERIFY),
    _malice("signature-old-key-stays", SIGNATURES,
            "(self._keys[did][0], -inf)", "(self._keys[did][0], inf)", T_VERIFY),
)

_SEQUENCE = (
    _slip("seq-same-number", SEQUENCE,
          "elif seq <= self.last or seq in self._ahead:", "elif seq < self.last or seq in self._ahead:",
          T_RULES),
    _malice("seq-damaged-number-counts", SEQUENCE,
            "if self._before is not None and self._before < seq < self.last:",
            "if self._before is not None and self._before > seq > self.last:", T_RULES),
    _slip("seq-confirmed-early", SEQUENCE, "CONFIRMED_BY = 3", "CONFIRMED_BY = 2", T_RULES),
    _slip("seq-small-step", SEQUENCE,
          "if seq - self.last <= MAX_STEP:", "if seq - self.last < MAX_STEP:", T_RULES),
    _slip("seq-old-for-ever", SEQUENCE, "        self.old = 0\n", "", T_RULES),
    _slip("seq-cursor-too-long", SEQUENCE, "len(text) <= 16", "len(text) <= 17", T_RULES),
    _malice("seq-start-from-now", SEQUENCE,
            '    if initial == "live":\n        return last_known',
            '    if initial == "live":\n        return None', T_RULES),
    _malice("gap-of-another-cursor", SEQUENCE,
            "known = position is not None and position.seq == stored", "known = position is not None",
            T_RELAYS),
    _slip("gap-at-any-event", SEQUENCE,
          "if self._first and step > 1 and", "if step > 1 and", T_RELAYS),
    _slip("gap-after-silence", SEQUENCE,
          "if self._first and step > 1 and", "if self._first and", T_RELAYS),
    _slip("gap-every-time", SEQUENCE,
          "self._seq, self._first, self.outdated = seq, False, False",
          "self._seq, self._first = seq, False", T_RELAYS),
)

_WRITER = (
    _malice("writer-cursor-one-ahead", WRITER,
            "is None else str(part.seq)\n        return", "is None else str(part.seq + 1)\n        return",
            _LIVE + "::test_starts_live_without_a_cursor_and_goes_on_from_the_stored_one"),
    _malice("writer-filtered-cursor-stays", WRITER,
            "                    parts[source].take((), seq, time)\n", "                    pass\n", T_RULES),
    _malice("writer-filtered-state-lost", WRITER,
            "                states.update(frame.covered.states)\n", "", T_RULES),
    _malice("writer-older-state-wins", WRITER,
            "                states.update(frame.covered.states)\n",
            "                states = {**frame.covered.states, **states}\n", T_RULES),
    _slip("writer-state-lost", WRITER,
          "                states[frame.state[0]] = frame.state[1]\n", "                pass\n", T_RULES),
    _malice("writer-cursor-of-another-host", WRITER,
            "covered.seqs[source] = (frame.seq, frame.time)",
            "covered.seqs[self.source] = (frame.seq, frame.time)", T_RULES),
    _slip("writer-batch-too-large", WRITER,
          "events + len(frame.entries) <= self._rule.max_events", "events <= self._rule.max_events",
          T_RULES),
    _malice("writer-compares-what-moves", WRITER,
            "            if move is not None:\n", "            if move is not None and part is not None:\n",
            _RELAYS + "::test_a_store_that_lost_its_newest_data_loses_nothing_of_two_relays"),
    _malice("writer-takes-after-the-loss", WRITER,
            "if not self.closed:  # else", "if True:  # else",
            _STORE + "::test_after_a_lost_cursor_nothing_is_written_until_it_is_loaded_again"),
    _malice("writer-drops-nothing-else", WRITER,
            "            self._dropped()\n            return\n", "            return\n",
            _RELAYS + "::test_a_store_that_lost_its_newest_data_loses_nothing_of_two_relays"),
    _malice("writer-keeps-the-batcher", WRITER,
            "            self.batcher.clear()\n", "",
            _STORE + "::test_after_a_lost_cursor_nothing_is_written_until_it_is_loaded_again"),
    _malice("writer-full-is-written", WRITER,
            'if result.status != "full":', "if result.status:",
            _STORE + "::test_stopping_with_a_full_stream_ends_soon_and_repeats_nothing"),
    _slip("writer-flush-too-early", WRITER,
          "                await self._write(self._in_flight)\n                self._done += self._in_flight.frames\n",
          "                self._done += self._in_flight.frames\n                self.changed.unpark_all()\n"
          "                await self._write(self._in_flight)\n", _STORE),
    _slip("writer-ends-with-a-batch", WRITER,
          "while not (self._closing.is_set() and self.idle)", "while not self._closing.is_set()",
          _LIVE + "::test_what_was_read_is_written_on_the_way_out"),
    _slip("writer-last-known-forgotten", WRITER,
          "            self.last_known = part.seq\n", "",
          _STORE + "::test_a_store_that_lost_everything_is_filled_from_where_it_can"),
    _slip("writer-reset-ignored", WRITER,
          "            self.last_known = None  # an operator", "            pass  # an operator",
          _STORE + "::test_the_last_known_cursor_is_forgotten_only_where_an_operator_reset_it"),
    _slip("writer-overflow-of-the-others", WRITER,
          "if entry.stream == full else entry", "if entry.stream != full else entry",
          _RELAYS + "::test_repos_that_cannot_be_queued_do_not_stop_what_is_live"),
    _slip("writer-silence-unwatched", WRITER,
          'if result is not None and result.status == "cursor_moved":',
          'if result is not None and result.status == "full":',
          _LIVE + "::test_a_cursor_that_is_set_back_is_noticed_while_nothing_comes"),
)

_STREAMS_BUGS = (
    _slip("append-at-the-mark", APPEND, "reply[3 + index] >= mark", "reply[3 + index] > mark", T_APPEND),
    _malice("append-lost-cursor-passes", APPEND,
            "  if stored ~= expected then", "  if stored ~= expected and stored ~= '' then", T_APPEND),
    _malice("append-half-is-done", APPEND, "done == moving then", "done > 0 then", T_APPEND),
    _malice("append-nothing-moves", APPEND,
            "if moving > 0 and done == moving then", "if done == moving then", T_APPEND),
    _malice("append-repeats", APPEND, "  return reply\nend\n\nfor index = 1, streams do\n  local mark",
            "  if reply[1] ~= 'appended' then\n    return reply\n  end\nend\n\n"
            "for index = 1, streams do\n  local mark", T_APPEND),
    _slip("append-hash-unchecked", APPEND,
          "  redis.call('HLEN', KEYS[streams + cursors + index])\n", "", T_APPEND),
    _slip("append-field-stays", APPEND,
          "      redis.call('HDEL', key, ARGV[field])\n", "      redis.call('EXISTS', key)\n", T_APPEND),
    _slip("append-memory-to-the-end", APPEND,
          "local MEMORY_SHARE = 0.9", "local MEMORY_SHARE = 1.0", _STREAMS + "test_memory.py"),
    _slip("trim-to-the-fastest", TRIM,
          "sortable(id) < sortable(floor)", "sortable(id) > sortable(floor)", T_TRIM),
    _malice("trim-ids-as-text", TRIM, "sortable(id) < sortable(floor)", "id < floor", T_TRIM),
    _malice("trim-one-pending", TRIM,
            "if facts['pending'] > 0 then", "if facts['pending'] > 1 then", T_TRIM),
    _malice("trim-last-pending", TRIM,
            "facts['name'])[2]", "facts['name'])[3]", T_TRIM),
    _malice("trim-not-what-was-set-back", TRIM, "    wanted[2] = ", "    wanted[1] = ", T_TRIM),
    _slip("trim-inexact", TRIM, "if tonumber(seq) >= 9007199254740991 then", "if false then", T_TRIM),
    _malice("trim-one-more", TRIM, "tonumber(seq) + 1)", "tonumber(seq) + 2)", T_TRIM),
    _malice("acknowledge-of-another-group", ACKNOWLEDGE,
            "if #groups == 1 and groups[1][2] == ARGV[1] then", "if #groups == 1 then",
            T_CONSUME, T_CONSUMER),
    _malice("acknowledge-deletes-for-all", ACKNOWLEDGE,
            "if #groups == 1 and groups[1][2] == ARGV[1] then", "if true then", T_CONSUME),
    _malice("move-acknowledges-first", MOVE, "-- Written first: a server that refuses it",
            "redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])\n-- Written first: a server that refuses it",
            T_CONSUMER),
    _malice("move-deletes-for-all", MOVE, "if #groups == 1 then", "if true then", T_LETTERS),
    _slip("move-twice", MOVE, "ARGV[2], ARGV[2], 1) == 0 then", "ARGV[2], ARGV[2], 1) < 0 then",
          T_CONSUMER, T_LETTERS),
    _malice("forget-whoever-holds", FORGET, "facts['pending'] == 0 and facts", "facts", T_CONSUMER, T_CONSUME),
    _slip("consumer-lost-reply", CONSUMER,
          'self._own, self._store = "-", store', "self._store = store", T_CONSUMER),
    _slip("consumer-failed-take-holds", CONSUMER,
          "            self.release(item.id for item in taken.deliveries)\n", "", T_CONSUMER),
    _slip("consumer-failed-take-goes-on", CONSUMER,
          "            self._store = None\n            self.release", "            self.release", T_CONSUMER),
    _slip("consumer-takes-its-held-again", CONSUMER,
          "            fresh = [row for row in rows if row.id not in self._held]\n",
          "            fresh = list(rows)\n", T_CONSUMER),
    _slip("consumer-reclaims-its-held", CONSUMER,
          "\n        fresh = [row for row in rows if row.id not in self._held]\n",
          "\n        fresh = list(rows)\n", T_CONSUMER, T_CONSUME),
    _slip("consumer-suspicious-late", CONSUMER,
          "return self.deliveries > SUSPICIOUS_DELIVERIES", "return self.deliveries > SUSPICIOUS_DELIVERIES + 1",
          T_CONSUMER),
    _slip("consumer-suspicious-next-late", CONSUMER,
          "return self.deliveries >= SUSPICIOUS_DELIVERIES", "return self.deliveries > SUSPICIOUS_DELIVERIES",
          T_CONSUMER),
    _slip("consumer-two-alone", CONSUMER, "                chosen = fresh[:1]", "                chosen = fresh[:2]", T_CONSUMER),
    _slip("consumer-beside-others", CONSUMER,
          "                if not self._may_try(fresh[0]):\n                    return True\n", "", T_CONSUMER),
    _malice("consumer-steals", CONSUMER,
            "min((row.idle_ms for row in chosen), default=0)", "0", T_CONSUMER),
    _malice("consumer-acknowledges-the-stolen", CONSUMER,
            "if entry_id not in taken and not store.call(\"XRANGE\", self.stream, entry_id, entry_id)",
            "if entry_id not in taken", T_CONSUMER),
    _malice("consumer-group-from-now", CONSUMER, 'group, "0", "MKSTREAM"', 'group, "$", "MKSTREAM"', T_CONSUMER),
    _malice("consumer-hold-poisons", CONSUMER, 'else ("JUSTID",)', "else ()", T_CONSUME, T_CONSUMER),
    _slip("consumer-hold-forgets", CONSUMER, '("RETRYCOUNT", 1, "JUSTID")', '("JUSTID",)', T_CONSUMER),
)

_INDEXER_BUGS = (
    _slip("plan-same-state-again", PLAN,
          "(operation.rev, operation.cid) <= (rev, cid)", "(operation.rev, operation.cid) < (rev, cid)", T_PLAN),
    _malice("plan-buried-comes-back", PLAN,
            "if tombstone is not None and operation.rev <= tombstone:",
            "if tombstone is not None and operation.rev < tombstone:", T_PLAN),
    _slip("plan-deletion-of-its-rev", PLAN,
          'operation.rev < (rev or "") if exists', 'operation.rev <= (rev or "") if exists', T_PLAN),
    _malice("plan-complete-rev-itself", PLAN,
            "if operation.rev < complete_rev and", "if operation.rev <= complete_rev and", T_PLAN),
    _slip("plan-stored-state-below", PLAN,
          "complete_rev and not (exists and cid == operation.cid):", "complete_rev:", T_PLAN),
    _malice("plan-no-tombstone-at-the-rev", PLAN,
            "if deletion.rev >= complete_rev or", "if deletion.rev > complete_rev or", T_PLAN),
    _malice("plan-no-tombstone-of-the-absent", PLAN,
            "        if deletion.rev >= complete_rev or", "        if before.exists and deletion.rev >= complete_rev or",
            T_PLAN),
    _slip("plan-posts-are-forgotten", PLAN, 'return f"/{_POST}/" in uri', "return False", T_PLAN),
    _slip("plan-not-revived", PLAN,
          "    if before.tombstone is not None:\n        plan.revived", "    if before.tombstone is None:\n        plan.revived",
          T_PLAN),
    _slip("plan-order-of-arrival", PLAN, "            found.sort(key=sort_key)\n", "            pass\n", T_PLAN),
    _malice("plan-new-below-the-complete-rev", PLAN,
            "elif uri not in stored and found[0].did not in complete_revs:", "elif uri not in stored:", T_PLAN),
    _slip("plan-not-cut", PLAN, "            looked_at.update(operation.rows.looks_at)\n", "", T_PLAN),
    _slip("plan-no-trace", PLAN, "if operation.rows.leaves_trace:", "if not operation.rows:", T_PLAN),
    _slip("plan-second-notifies", PLAN, "put and (first or put)", "put", T_PLAN),
    _slip("plan-overtaken-forgotten", PLAN,
          "                plan.overtaken.append(put)\n", "                pass\n", T_PLAN,
          _INDEXER + "test_golden_threads.py::test_a_deleted_reply_leaves_its_mark_however_it_came"),
    _slip("plan-row-without-rev", PLAN,
          "(operation.historical or state.rev is None)", "operation.historical", T_PLAN),
    _slip("revs-go-down", REVS, "\n    WHERE known.rev < EXCLUDED.rev\n", "\n", T_FLOORS),
    _malice("revs-of-half-a-repo", REVS, "if rev.complete and found", "if found", T_FLOORS),
    _malice("revs-lower-in-the-batch", REVS, 'max(rev, found.get(did, ""))', "rev", T_FLOORS),
    _slip("revs-pruned-once", REVS, "pruned = false, purged = false", "purged = false", T_FLOORS),
    _malice("revs-prune-the-rev-itself", REVS, "t.rev < n.rev", "t.rev <= n.rev", T_FLOORS),
    _slip("revs-prune-posts", REVS, "    WHERE split_part(t.uri, '/', 4) <> 'app.bsky.feed.post'\n", "", T_FLOORS),
    _slip("revs-pruned-before-the-end", REVS,
          "if removed < BATCH_TOMBSTONES:", "if removed <= BATCH_TOMBSTONES:", T_FLOORS),
    _slip("revs-sync-goes-back", REVS,
          'WHERE actor_sync."repoRev" IS NULL OR actor_sync."repoRev" < EXCLUDED."repoRev"\n', "",
          T_ACCOUNTS + "::test_repo_revs_never_go_back"),
    _slip("revs-oldest-of-the-batch", REVS, "known.rev < rev.rev:", "known.rev > rev.rev:",
          T_ACCOUNTS + "::test_repo_revs_never_go_back"),
    _malice("actors-not-locked", ACTORS, "ORDER BY did FOR NO KEY UPDATE", "ORDER BY did",
            T_FLOORS + "::test_a_batch_that_waited_for_the_floor_sees_it"),
    _malice("references-shared", LOCKS, "exclusive[_key(operation.uri)] = True", "exclusive[_key(operation.uri)] = False",
            _INDEXER + "test_early_replies.py::test_another_worker_that_writes_the_missing_post_is_waited_for"),
    _malice("apply-complete-before-the-batch", APPLY,
            "    if complete:\n        raise_complete_revs(tx, complete)\n", "", T_FLOORS),
    _slip("apply-poison-once-more", APPLY,
          "if delivery.crashes_workers(self._max_deliveries):", "if delivery.crashes_workers(self._max_deliveries + 1):",
          _INDEXER + "test_role.py::test_an_entry_that_kills_workers_is_buried_and_its_neighbours_are_not"),
    _malice("write-no-tombstone", WRITE, "    if plan.tombstones:\n", "    if plan.tombstones and plan.deletes:\n",
            T_FLOORS, _INDEXER + "test_golden_threads.py"),
    _slip("duplicates-youngest", DUPLICATES, 'row["uri"] < put.uri:', 'row["uri"] > put.uri:', T_REACTIONS, T_DUPLICATES),
    _malice("duplicates-point-at-nothing", DUPLICATES, "    if displaced:\n", "    if not displaced:\n", T_REACTIONS),
    _slip("duplicates-park-who-stands", DUPLICATES, "if stands != put.uri:", "if stands == put.uri:", T_REACTIONS),
    _slip("duplicates-in-any-order", DUPLICATES, "sorted(puts, key=_uri_of)", "puts", T_REACTIONS, T_DUPLICATES),
    _malice("duplicates-count-twice", DUPLICATES, "if standing[its_key] == put.uri], displaced", "], displaced",
            T_REACTIONS, T_DUPLICATES),
    _malice("duplicates-displaced-still-count", DUPLICATES, "        displaced += weaker\n", "", T_REACTIONS, T_DUPLICATES),
    _malice("duplicates-none-succeeds", DUPLICATES, "*key.take_waiting(gone, puts)]", "]", T_REACTIONS),
    _slip("duplicates-waits-for-ever", DUPLICATES,
          "    if uris:\n        tx.execute(_FORGET", "    if not uris:\n        tx.execute(_FORGET", T_DUPLICATES),
    _malice("isolation-blames-for-the-server", ISOLATION,
            "        if not error.follows_data:\n            raise\n", "", T_ISOLATION),
    _slip("isolation-no-second-try", ISOLATION, "if failure is not None and not repeated:", "if False:", T_ISOLATION),
    _slip("isolation-systemic-late", ISOLATION, "len(owners) >= SYSTEMIC", "len(owners) > SYSTEMIC", T_ISOLATION),
    _malice("isolation-one-owner-stops-all", ISOLATION, "len(set(owners)) > 1", "len(set(owners)) > 0", T_ISOLATION),
    _malice("isolation-buries-everything", ISOLATION,
            "if len(culprits) < sum(map(len, groups)):", "if len(culprits) <= sum(map(len, groups)):", T_ISOLATION),
    _slip("isolation-never-forgives", ISOLATION, "            self._given_up.clear()\n", "", T_ISOLATION),
    _malice("isolation-few-at-a-time", ISOLATION, "        self._given_up.extend(hit)\n", "", T_ISOLATION),
    _slip("isolation-waits-on", ISOLATION, "            self._since = None  # another error", "            pass  # another error",
          T_ISOLATION),
    _slip("isolation-reversed", ISOLATION,
          "first = _apply(entries[:middle], apply, culprits, repeated=True)\n        return _apply(entries[middle:],",
          "first = _apply(entries[middle:], apply, culprits, repeated=True)\n        return _apply(entries[:middle],",
          T_ISOLATION),
    _slip("isolation-one-try-more", ISOLATION, "range(1, tries)", "range(tries)", T_ISOLATION),
)

_BACKFILLER_BUGS = (
    _malice("attempt-older-than-the-deletions", ATTEMPT,
            'max(job.rev if job.deleted else "", stored.highest)', "stored.highest",
            T_BACKFILLER + "::test_a_repo_older_than_the_deletions_proves_nothing"),
    _slip("attempt-rev-itself-is-stale", ATTEMPT, "            if rev < known:", "            if rev <= known:", T_RECONCILIATION + "::test_a_repo_that_is_stored_at_its_rev_is_not_fetched_again"),
    _malice("attempt-never-whole-is-current", ATTEMPT, "        if stored.complete is None:\n            return None",
            "        if stored.newest is None:\n            return None", T_RECONCILIATION + "::test_a_repo_that_is_stored_at_its_rev_is_not_fetched_again"),
    _malice("attempt-deletions-are-current", ATTEMPT, "if job.deleted or not job.reason.confirmable", "if not job.reason.confirmable",
            T_RECONCILIATION + "::test_a_job_that_names_deletions_is_fetched_though_the_repo_is_current"),
    _malice("attempt-forced-compares-the-newest", ATTEMPT, "if rev == stored.complete else None",
            "if rev == stored.highest else None", T_RECONCILIATION + "::test_a_repo_that_is_stored_at_its_rev_is_not_fetched_again"),
    _slip("attempt-settled-before-it-is-stored", ATTEMPT,
          "if stored.complete is None or stored.complete < job.rev:", "if stored.complete is None:", T_RECONCILIATION + "::test_a_row_that_came_in_between_looking_and_the_floor_is_deleted_all_the_same"),
    _malice("attempt-settled-unseen", ATTEMPT, "return not await self.have_older.call((job.did, stored.complete))",
            "return True", T_RECONCILIATION + "::test_a_row_that_came_in_between_looking_and_the_floor_is_deleted_all_the_same"),
    _malice("attempt-outcome-after-the-acknowledgement", ATTEMPT,
            "        await self._outcomes.call(outcome)\n        if done.settles:",
            "        await self._jobs.finish(delivery)\n        await self._outcomes.call(outcome)\n        if done.settles:",
            _BACKFILLER + "test_boundary.py"),
    _malice("attempt-unstored-outcome-is-acknowledged", ATTEMPT,
            "            self._jobs.release(delivery)\n", "            await self._jobs.finish(delivery)\n",
            _BACKFILLER + "test_boundary.py::test_a_defect_that_hits_every_outcome_leaves_the_worker_running"),
    _slip("attempt-never-looked-at-again", ATTEMPT, "late = followed or (", "late = (", T_RECONCILIATION + "::test_a_repo_is_looked_at_again_where_older_states_may_be_on_their_way"),
    _slip("attempt-crashes-once-less", ATTEMPT,
          "if delivery.crashes_workers(self.settings.max_deliveries):", "if delivery.crashes_workers(self.settings.max_deliveries - 1):",
          T_BACKFILLER + "::test_a_job_that_keeps_crashing_the_worker_becomes_a_dead_letter",
          T_BACKFILLER + "::test_a_job_has_all_of_its_deliveries"),
    _malice("decide-loses-deletions", ATTEMPT, '"dead_letter" if job.deleted else "unavailable"', '"unavailable"', T_DECISION),
    _slip("decide-host-counts", ATTEMPT,
          "job.attempts + (not failure.of_host)", "job.attempts + 1", T_DECISION),
    _slip("decide-rate-limit-forgets", ATTEMPT,
          'return RetryDecision("wait", job.attempts, pause, job.failing, job.in_row, job.since)',
          'return RetryDecision("wait", job.attempts, pause)', T_DECISION),
    _slip("decide-one-attempt-more", ATTEMPT,
          "given_up = in_row >= in_a_row or attempts >= settings.backfiller_max_attempts",
          "given_up = in_row >= in_a_row or attempts > settings.backfiller_max_attempts", T_DECISION),
    _slip("decide-row-too-long", ATTEMPT,
          "given_up = in_row >= in_a_row or", "given_up = in_row > in_a_row or", T_DECISION),
    _malice("decide-impatient-with-hosts", ATTEMPT,
            "in_row >= settings.backfiller_max_attempts and now - since >= patience",
            "in_row >= settings.backfiller_max_attempts or now - since >= patience", T_DECISION),
    _malice("decide-loses-repairs", ATTEMPT, '"dead_letter" if job.repair else "unavailable"', '"unavailable"', T_DECISION),
    _malice("decide-negative-at-once", ATTEMPT,
            "given_up = failure.reason not in _NEGATIVE or in_row >= NEGATIVE_ATTEMPTS", "given_up = True", T_DECISION),
    _slip("decide-any-row", ATTEMPT, "again = failure.mark == job.failing", "again = True", T_DECISION),
    _slip("decide-invalid-for-long", ATTEMPT, "in_a_row = min(in_a_row, enough)", "in_a_row = max(in_a_row, enough)", T_DECISION),
    _slip("decide-sooner-than-asked", ATTEMPT, "max(pause, failure.retry_after or 0.0)", "pause", T_DECISION),
    _malice("changes-close-first", CHANGES,
            "        if number == 0:\n            await sink.put()\n        if await sink.close():\n            return deleted\n",
            "        closed = await sink.close()\n        if number == 0:\n            await sink.put()\n"
            "        if closed:\n            return deleted\n",
            T_BACKFILLER + "::test_all_records_come_before_one_closing_event"),
    _malice("changes-delete-what-is-named", CHANGES, "list(absent(sorted(set(named)), paths))", "sorted(set(named))",
            T_BACKFILLER + "::test_deletions_are_queued_only_where_the_tree_proves_them"),
    _slip("changes-puts-first", CHANGES, '        after = ""\n        while page',
          '        after = ""\n        if number == 0:\n            await sink.put()\n        while page',
          T_BACKFILLER + "::test_deletions_are_queued_only_where_the_tree_proves_them",
          T_RECONCILIATION),
    _slip("changes-named-forgotten", CHANGES, "        await sink.delete(gone)\n", "        pass\n",
          T_BACKFILLER + "::test_deletions_are_queued_only_where_the_tree_proves_them"),
    _slip("changes-pages-skip", CHANGES, "and current < path:", "and current <= path:", T_RECONCILIATION + "::test_very_many_rows_are_compared_in_pages"),
    _malice("stored-newer-rows-go", STORED, 'rev COLLATE "C" < %s) AND uri', 'rev COLLATE "C" > %s) AND uri', T_RECONCILIATION + "::test_rows_that_the_repo_no_longer_holds_are_deleted_unless_they_are_newer"),
    _slip("stored-row-without-rev", STORED, 'WHERE did = %s AND (rev IS NULL OR rev COLLATE "C" < %s)',
          'WHERE did = %s AND (rev COLLATE "C" < %s)', T_RECONCILIATION + "::test_rows_that_the_repo_no_longer_holds_are_deleted_unless_they_are_newer"),
    _malice("closing-is-no-end", CLOSING, "rev, complete=True)", "rev, complete=False)",
            T_BACKFILLER + "::test_all_records_come_before_one_closing_event"),
)
_ACCOUNT_BUGS = (
    _slip("statuses-a-copy-stands", STATUSES,
          "max((first, *self._by_relay.values()), key", "max(self._by_relay.values(), key", T_STATUSES),
    _malice("statuses-by-the-clock", STATUSES, "return place > before or (",
            "return change.time > known.time or (", T_STATUSES),
    _slip("statuses-numbering-forgotten", STATUSES, "place = read_numbered(change.relay)[1], change.seq",
          "place = 0, change.seq", T_STATUSES),
    _malice("statuses-redelivery-is-news", STATUSES, "change.time > _later(known.latest, RENUMBERED)",
            "change.time > known.latest", T_STATUSES),
    _slip("statuses-latest-forgotten", STATUSES, "event = known._replace(latest=latest)", "event = known", T_STATUSES),
    _slip("statuses-latest-not-stored", STATUSES,
          "latest = one.latest if one.latest != one.time else None", "latest = None", T_ACCOUNTS),
    _malice("statuses-active-wins-ties", STATUSES, "self.status is not None, self.status or",
            "self.status is None, self.status or", T_STATUSES),
    _malice("statuses-host-not-asked", STATUSES, "if status == DELETED]:", "if status != DELETED]:", T_LOOKUPS),
    _slip("statuses-last-of-the-batch", STATUSES, "if any(taken) and", "if taken[-1] and", T_ACCOUNTS),
    _malice("homes-no-pds-is-home", HOMES, "in {None, server}", 'in {None, server, ""}', T_HOMES),
    _slip("homes-silent-is-another", HOMES, "in {None, server}", "== server", T_HOMES),
    _malice("homes-known-hears-all", HOMES, 'return known == "" and', "return known is not None and", T_HOMES),
    _slip("homes-busy-is-no-pds", HOMES, " and error.status != 429\n", "\n", T_HOMES),
    _slip("homes-silent-for-a-day", HOMES, "known, seconds = None, AGAIN_SECONDS",
          "known, seconds = None, KNOWN_SECONDS", T_HOMES),
    _malice("purge-leaves-no-mark", PURGE,
            "        tx.execute(_MARK_PURGED, (by_block and before in ([], [(True,)]), did))\n", "",
            T_LOOKUPS),
    _slip("purge-below-the-deletion", PURGE, "        if events.standing is not None:\n            above",
          "        if events.standing is None:\n            above", T_LOOKUPS),
    _malice("purge-active-of-before", PURGE, "return events is not None and not events.take(change)",
            "return False", T_LOOKUPS),
    _slip("purge-identity-of-after", PURGE, "return deletion is not None and reading.time <= deletion.latest",
          "return deletion is not None", T_LOOKUPS),
    _malice("purge-closing-of-before", PURGE, "return reading.rev.rev < purged_at", "return False", T_LOOKUPS),
    _slip("purge-refused-of-before", PURGE, "refused.rev < purged_at", "refused.rev > purged_at", T_LOOKUPS),
    _slip("purge-deletion-of-before", PURGE,
          "elif isinstance(reading.change, Delete) and outlives_complete_rev(reading.change.uri):",
          "elif False:", T_LOOKUPS),
    _malice("purge-first-page", PURGE, "if removed < BATCH_RECORDS:", "if removed <= BATCH_RECORDS:", T_ACCOUNTS),
    _slip("purge-tombstones-of-posts", PURGE,
          "    WHERE did = %s AND split_part(uri, '/', 4) <> 'app.bsky.feed.post'\n", "    WHERE did = %s\n", T_LOOKUPS),
    _slip("labels-order-of-arrival", LABELS, "if known is None or known.age < label.age:", "if True:", T_ACCOUNTS),
    _malice("labels-negation-loses-ties", LABELS, "return self.cts, self.neg, self.exp", "return self.cts, not self.neg, self.exp",
            T_ACCOUNTS),
    _malice("labels-of-one-version", LABELS, "{(*label.subject, label.cid) for label in (*stored, *labels)}",
            "{(*label.subject, label.cid) for label in labels}", T_ACCOUNTS),
    _malice("labels-not-locked", LABELS, "        tx.query(_LOCK)\n", "", T_ACCOUNTS + "::test_statements_wait_for_those_of_another_worker"),
    _malice("labels-forged-is-unverified", LABEL_PROOF, "else LabelStatus.FORGED", "else LabelStatus.UNVERIFIED", T_LABEL_PROOF),
    _slip("labels-rotated-key", LABEL_PROOF, "document = await self._resolve(label.src, force=True)",
          "document = await self._resolve(label.src, force=False)", T_LABEL_PROOF),
    _malice("labels-malformed-sig", LABEL_RULES, "if type(signature) is not bytes and signature is not None:", "if False:",
            T_LABEL_RULES, T_LABEL_PROOF),
    _slip("labels-expiry-unsigned", LABEL_RULES, '"neg", "cts", "exp")\n_TEXTS', '"neg", "cts")\n_TEXTS',
          T_LABEL_RULES, T_LABEL_PROOF),
)

_EDGE_BUGS = (
    _malice("session-of-any-process", SESSION, "    if pid != connection.info.backend_pid:\n        return False\n", "",
            T_POOLER),
    _malice("session-of-any-age", SESSION, "    if age_ms is not None and age_ms >", "    if age_ms is None and age_ms >",
            T_POOLER),
    _malice("session-unproven", SESSION, "return _row(connection, look, _MARK) == (pid, mark)", "return True", T_POOLER),
    _malice("session-settings-stay", SESSION, 'f"SET LOCAL {name} TO', 'f"SET {name} TO', T_POOLER),
    _malice("session-not-durable", SESSION, 'return "on" if value == "off" else str(value)', "return str(value)",
            T_POOLER, T_CONNECTION),
    _slip("session-statements-shared", SESSION, "if _row(connection, seen, name) == (0,):", "if True:", T_POOLER),
    _malice("commit-answered-by-rollback", CONNECTION, 'if self._command("COMMIT") != "COMMIT":', 'if self._command("COMMIT") == "":', T_CONNECTION),
    _malice("dial-any-name", DIALER, "if self._guarded and not is_public_name(host):",
            "if not self._guarded and not is_public_name(host):", T_CONNECT),
    _malice("dial-private-through-the-proxy", DIALER, "            await self._public(host, found)\n", "", T_CONNECT),
    _malice("dial-one-public-is-enough", DIALER, "addresses = await self._public(host, addresses)",
            "await self._public(host, addresses)", T_CONNECT),
    _malice("dial-mapped", DIALER, "return is_public_address(str(parsed.ipv4_mapped))", "return True", T_CONNECT),
    _malice("dial-own-prefix", DIALER, "for prefix in (NAT64, *prefixes):", "for prefix in (NAT64,):", T_CONNECT),
    _slip("dial-excluded-six", DIALER, "return parsed in _IPV6_PUBLIC and not excluded", "return parsed in _IPV6_PUBLIC", T_CONNECT),
    _malice("dial-number-as-name", DIALER, "return not top[0].isdigit() and top", "return top", T_CONNECT, T_HOSTS),
    _slip("dial-prefixes-for-ever", DIALER, "trio.current_time() + _PREFIX_SECONDS", "float('inf')", T_CONNECT),
    _slip("dial-any-number-of-addresses", DIALER, "open_first(host, addresses[:MAX_ADDRESSES], port)\n\n",
          "open_first(host, addresses, port)\n\n", T_CONNECT),
    _malice("repair-trusts-the-lost", GAP_REPAIR, "if is_state(state) and not lost else 0", "if is_state(state) else 0", T_GAPS + "::test_after_a_loss_of_the_database_its_own_revs_count"),
    _malice("repair-changed-since", GAP_REPAIR, "                or tid_microseconds(repo.rev) >= changed_since\n", "", T_GAPS + "::test_after_a_loss_of_the_database_its_own_revs_count"),
    _malice("repair-of-half-a-repo", GAP_REPAIR, " or repo.did not in whole):", "):", T_GAPS + "::test_after_a_loss_of_the_database_its_own_revs_count"),
    _slip("repair-returned", GAP_REPAIR, "(further or returned or", "(further or", T_GAPS + "::test_an_account_that_came_back_in_a_gap_is_fetched_at_its_known_rev"),
    _slip("repair-inactive", GAP_REPAIR, "if repo.active and (further", "if (further", T_GAPS + "::test_a_gap_is_noted_with_the_events_behind_it_and_repaired"),
    _malice("repair-status-outranks", GAP_REPAIR, "max(0, (gap.to_seq or 0) - 1)", "max(0, (gap.to_seq or 0) + 1)", T_GAPS + "::test_a_gap_is_noted_with_the_events_behind_it_and_repaired"),
    _slip("repair-status-of-any", GAP_REPAIR, "(stored[repo.did] is None) == repo.active", "(stored[repo.did] is None) != repo.active",
          T_GAPS + "::test_a_gap_is_noted_with_the_events_behind_it_and_repaired"),
    _malice("repair-no-room-is-done", GAP_REPAIR, '.status != "full":\n                return', '.status != "":\n                return',
            T_GAPS + "::test_a_repair_waits_for_room"),
    _malice("repair-forgets-the-refused", GAP_REPAIR, "add_dead_letter(store, GAPS, entry_id, fields, *why)",
            "store.call(\"XDEL\", GAPS, entry_id)", T_GAP_TABLE),
    _malice("marks-one-is-none", MARKS, "        if has < number:", "        if has < number - 1:", T_MARKS),
    _malice("marks-since-the-newest", MARKS, "min(known, default=None)", "max(known, default=None)", T_MARKS),
    _slip("marks-new-worker", MARKS, "if len(known) < len(times):", "if not known:", T_MARKS),
    _slip("marks-heal-down", MARKS, "greatest(mark.number, EXCLUDED.number)", "EXCLUDED.number", T_MARKS),
    _malice("again-the-later-request", READ_AGAIN, "min(since, before)", "max(since, before)", T_GAPS + "::test_of_two_requests_the_earlier_counts"),
    _malice("again-forward", READ_AGAIN, "if target is None or (present is not None and target >= present):", "if target is None:", T_GAPS + "::test_a_cursor_goes_back_to_well_before_the_loss_and_never_forward"),
    _slip("again-without-margin", READ_AGAIN, "since - MARGIN_SECONDS", "since", T_GAPS + "::test_a_cursor_goes_back_to_well_before_the_loss_and_never_forward"),
    _malice("again-until-the-second", READ_AGAIN, "max(newest, again_until(store, key))", "newest", T_GAPS + "::test_a_cursor_goes_back_to_well_before_the_loss_and_never_forward"),
    _slip("forms-kept-after-a-failure", CONNECTION, "        self.forms = None  # a table may have been changed under a statement\n", "", T_FORMS),
    _slip("forms-unique-overlooked", FORMS, "AND x.indisunique AND NOT x.indisprimary", "AND x.indisunique AND x.indpred IS NOT NULL", T_FORMS),
    _slip("forms-null-is-an-empty-list", STATEMENTS, "'CASE WHEN n.\"{0}\" IS NOT NULL '\n    'THEN ARRAY(SELECT jsonb_array_elements_text(n.\"{0}\"::jsonb)) END'",
          "'ARRAY(SELECT jsonb_array_elements_text(n.\"{0}\"::jsonb))'", T_FORMS),
    _slip("forms-their-events-forgotten", STATUSES, "sorted(by_did.keys() - stored.keys())", "sorted(by_did.keys() & stored.keys())", T_FORMS),
    _slip("forms-their-time-stays", STATUSES, "        if theirs:  # for when it comes back", "        if not theirs:", T_FORMS),
    _slip("forms-takedowns-lost", REBUILD, "    for table, rows in kept.items():", "    for table, rows in {}.items():", T_ADOPTION),
    _malice("forms-repair-notifies", REBUILD, "in errors.missing if notify else ():", "in errors.missing:", T_ADOPTION),
)

_BLOCK_BUGS = (
    _slip("block-below-is-itself", SELECTION, "if name[dot - 1 :] in self.hosts:", "if name[dot:] in self.hosts:", T_SELECTION),
    _malice("block-evaded-by-a-port", SELECTION, "if host in self.hosts or name in self.hosts:", "if host in self.hosts:", T_SELECTION),
    _malice("block-queued-for-ever", SELECTION, "queued_at < self.queued.get(did, 0.0)", "did in self.queued", T_SELECTION),
    _slip("block-prefix-alone", SELECTION, "if collection and self.collections and is_selected(collection, self.collections):",
          "if collection and collection in self.collections:", T_SELECTION),
    _malice("block-lifted-stays", BLOCKS, "FROM rsky_pipeline.block WHERE NOT lifted\"", "FROM rsky_pipeline.block\"", T_BLOCKS),
    _slip("block-lifted-unnoticed", BLOCKS, "tx.execute(_LIFT, (each.kind, each.subject))\n        tx.execute(_RAISE)",
          "tx.execute(_LIFT, (each.kind, each.subject))", T_BLOCKS),
    _slip("block-purge-is-forgotten", BLOCKS, "CASE WHEN known.rows = 'purge' OR (EXCLUDED.rows = 'keep' AND NOT known.lifted)\n        THEN known.rows ELSE EXCLUDED.rows END",
          "EXCLUDED.rows", T_BLOCKS),
    _malice("block-added-again-is-forgotten", BLOCKS, "WHERE kind = %s AND subject = %s AND lifted", "WHERE kind = %s AND subject = %s", T_BLOCKS),
    _malice("block-writers-go-on", BLOCKS, "pg_snapshot_xmin(pg_current_snapshot()) >", "pg_snapshot_xmax(pg_current_snapshot()) >", T_BLOCKS),
    _malice("block-lost-by-redis", PUBLISHED, "if version is None or version == known.version:\n        return known",
            "if version is None:\n        return Selection()\n    if version == known.version:\n        return known", T_BLOCKED_LIVE),
    _malice("block-takes-down-theirs", BLOCKING, ' AND "takedownRef" IS NULL', "", T_BLOCK),
    _malice("block-lifts-theirs", BLOCKING, """(%b::text[]) AND "takedownRef" = %s\n""", """(%b::text[]) AND '' <> %s\n""", T_BLOCK),
    _malice("block-lifts-an-erasure", BLOCKING, "        if each.rows == \"purge\":\n            database.execute(_FORGET_PURGES",
            "        if each.rows:\n            database.execute(_FORGET_PURGES", T_BLOCK),
    _slip("block-purged-for-good", BLOCKING, "            database.execute(_FORGET_PURGES, (touched,))\n", "            pass\n", T_BLOCK),
    _malice("block-of-strangers", BLOCKING, "elif not only.keeps(host=host_name(document.pds)):", "else:", T_BLOCK),
    _slip("block-lifted-and-not-fetched", BLOCKING, "adder.add(_everybody(database) if everyone else named)", "adder.add(named)", T_BLOCK),
    _malice("block-known-to-nobody", APPLY, "            elif isinstance(reading.change, AccountChange):\n                kept.append(reading)\n                known_only.add(reading.did)",
            "            elif isinstance(reading.change, AccountChange):\n                kept.append(reading)", T_BLOCKS),
    _slip("block-commits-do-not-count", APPLY, "                kept.append(reading._replace(change=None, refused=None))\n", "", T_BLOCKS),
    _malice("block-frames-are-written", ADMISSION, "            frame.update = frame.account = frame.status = None\n            frame.clear()",
            "            frame.update = frame.account = frame.status = None", T_BLOCKED_FRAMES),
    _slip("block-frames-move-the-state", ADMISSION, "            frame.update = frame.account = frame.status = None\n            frame.clear()",
          "            frame.account = frame.status = None\n            frame.clear()", T_BLOCKED_FRAMES),
)

_INSTALLATION_BUGS = (
    _malice("pair-without-id", PAIRING, "return self.noted is not None and self.noted != self.database",
            "return self.database is not None and self.noted not in (None, self.database)", T_PAIRING),
    _malice("pair-any", PAIRING, "return self.noted is not None and self.noted != self.database", "return False", T_PAIRING),
    _malice("pair-beside-the-batches", PAIRING, "            require_pair(store, database, group)\n        except", "            look(store, database, group)\n        except", T_PAIRING),
    _malice("pair-loss-unnoticed", PAIRING, "written = None if noted_marks(store, group) else last_written(database)", "written = None", T_PAIRING),
    _malice("pair-not-noted", PAIRING, "    note_database(store, group, own)\n", "", T_PAIRING),
    _slip("pair-noted-again", PAIRING, "if own is None or found.noted is not None:", "if own is None:", T_PAIRING),
    _malice("official-any-release", OFFICIAL, "    if beyond:\n", "    if not beyond:\n", T_SCHEMA),
    _slip("official-made-twice", OFFICIAL, "(one for one in known if one.name not in names)", "known", T_SCHEMA),
    _slip("official-the-next-release", OFFICIAL, "release_number(one.release) <= wanted", "release_number(one.release) < wanted", T_SCHEMA),
    _malice("official-too-old", OFFICIAL, "    if oldest - set(names) and set(names) <= oldest:", "    if False:", T_SCHEMA),
    _malice("official-without-the-lock", OFFICIAL, '"SELECT pg_advisory_xact_lock(%s)"', '"SELECT pg_try_advisory_xact_lock(%s)"', T_SCHEMA),
    _malice("official-earlier-than-the-last", OFFICIAL, ', max("timestamp")\n)', ', min("timestamp")\n)', T_SCHEMA),
    _malice("official-deleted-come-back", OFFICIAL, "WHERE NOT EXISTS (SELECT FROM {{schema}}.record r WHERE r.uri = s.uri AND r.cid = s.cid);",
            "WHERE false;", T_OPT_OUTS),
    _slip("official-two-say-the-same", OFFICIAL, "\nWHERE t.uri <> s.uri ON CONFLICT DO NOTHING;", "\nWHERE false ON CONFLICT DO NOTHING;", T_OPT_OUTS),
    _malice("official-required-column", COMPARE, "        required = not_null and not value\n", "        required = False\n", T_SCHEMA),
    _malice("official-narrower-type", COMPARE, "return fits and filled and (not_null or always or not has_not_null)", "return filled and (not_null or always or not has_not_null)", T_SCHEMA),
    _malice("official-new-not-null", COMPARE, "return fits and filled and (not_null or always or not has_not_null)", "return fits and filled", T_SCHEMA),
    _malice("official-not-unique", COMPARE, "                if key not in found_keys:\n", "                if False:\n", T_SCHEMA),
    _slip("official-partial-is-unique", COMPARE, "match = _UNIQUE.fullmatch(definition)", "match = _UNIQUE.match(definition)", T_SCHEMA),
)

_REBUILD_BUGS = (
    _malice("rebuild-history-is-news", ROWS, "if not revs.whole < put.rev <= revs.newest or not is_rev(put.rev):", "if not is_rev(put.rev):", T_REBUILD + "::test_nobody_is_notified_of_what_may_have_been_no_news"),
    _malice("rebuild-old-is-news", ROWS, "_minutes(put.indexed_at) <= _minutes(made) + LIVE_WITHIN_MINUTES", "_minutes(put.indexed_at)", T_REBUILD + "::test_nobody_is_notified_of_what_may_have_been_no_news"),
    _slip("rebuild-one-round", REBUILD, "if number_of_round < MOST_ROUNDS - 1 and wrong:", "if number_of_round == 0 and wrong:", T_REBUILD + "::test_a_live_event_between_comparison_and_writing_leaves_nothing"),
    _slip("rebuild-writes-the-damaged", REBUILD, """[one for one in found if one.kind != "damaged"]""", "list(found)", T_REBUILD + "::test_damaged_records_are_counted_and_left"),
    _malice("rebuild-false-content", REBUILD, "return cid == put.cid and (json == put.json", "return cid == put.cid or (json == put.json", T_REBUILD + "::test_each_trouble_is_named_and_its_remedy_removes_it"),
    _slip("rebuild-notifies-nobody", REBUILD, "in errors.missing if notify else ():", "in ():", T_REBUILD + "::test_each_trouble_is_named_and_its_remedy_removes_it"),
    _malice("rebuild-notifies-unasked", REBUILD, "in errors.missing if notify else ():", "in errors.missing:", T_REBUILD + "::test_a_rebuild_that_is_to_notify_nobody_writes_only_the_row"),
    _malice("rebuild-false-notifications-stay", REBUILD, "        if errors.wrong:\n", "        if False:\n", T_REBUILD + "::test_each_trouble_is_named_and_its_remedy_removes_it"),
    _slip("rebuild-traces-stay", REBUILD, "    _forget_traces(tx, puts, collections)\n    # What", "    # What", T_REBUILD + "::test_each_trouble_is_named_and_its_remedy_removes_it"),
    _slip("rebuild-counts-stay", REBUILD, "    recount_in(tx, counts.touched())\n", "", T_REBUILD + "::test_what_rows_count_is_counted_with_them"),
    _slip("rebuild-begins-again", REBUILD, "            self.after = did\n            if time", "            if time", T_REBUILD + "::test_a_rebuild_goes_on_behind_the_accounts_that_are_done"),
    _malice("rebuild-beside-the-indexer", REBUILD, "                lock_actors(tx, {did})\n                _write_again", "                _write_again", T_REBUILD + "::test_an_account_in_a_batch_is_waited_for"),
)

_FINDING_BUGS = (
    _slip("finding-warning-is-a-complaint", FINDINGS, """for each in found(health) if each["verdict"] == "fail"]""", "for each in found(health)]", T_FINDINGS),
    _malice("finding-failure-is-a-warning", FINDINGS, """"fail" if each.status == "fail" else "warn",""", """"warn",""", T_FINDINGS),
    _slip("finding-of-the-rule-alone", RULES, """return self.remedy or self.rule.remedy.replace""", "return self.rule.remedy.replace", T_FINDINGS),
    _malice("finding-threshold-passes", RULES, "if limits.fail is not None and value >= limits.fail:", "if limits.fail is not None and value > limits.fail:", T_FINDINGS),
    _slip("finding-history-like-live", RULES, "if self.history is None or subject in LIVE_STREAMS:", "if self.history is None or subject not in LIVE_STREAMS:", T_FINDINGS),
    _malice("finding-warning-hides-failure", SELF_CHECK, """if known.status == "warn" and each.status == "fail":""", """if known.status == "fail" and each.status == "warn":""", T_FINDINGS),
    _slip("finding-shortest-trouble", SELF_CHECK, "if trouble.seconds > known.seconds:", "if trouble.seconds < known.seconds:", T_FINDINGS),
    _malice("finding-inodes-are-no-disk", SELF_CHECK, "max(used, files), figure", "used, figure", T_FINDINGS),
    _malice("advice-for-another-pipeline", ADVICE, "    if not _options or _MARK not in text:\n", "    if _MARK not in text or _options:\n", T_ADVICE),
    _slip("advice-behind-the-other-program", ADVICE, """before, separator, after = line.partition(" -- ")""", """before, separator, after = line, "", \"\"""", T_ADVICE),
    _slip("advice-default-is-named", ADVICE, "if config is not None and Path(config).absolute() == DEFAULT_FILES[-1]:", "if False:", T_ADVICE),
)

_SEEN_BUGS = (
    _malice("seen-goes-back", SEEN, """WHERE actor_state."lastSeenNotifs" COLLATE "C" < excluded."lastSeenNotifs" COLLATE "C"\n""", "", T_SEEN_ROWS),
    _malice("seen-first-of-a-batch", SEEN, "key=lambda each: (each.did, each.at))", "key=lambda each: each.did)", T_SEEN_ROWS),
    _malice("seen-before-the-commit", SEEN, "failure = GrpcStatus.UNAVAILABLE if error.retryable else GrpcStatus.INTERNAL", "failure = None", T_SEEN_ROWS),
    _malice("seen-any-name", SEEN, "    if not is_did(text):\n", "    if not text:\n", T_SEEN),
    _slip("seen-unsigned-time", SEEN, "yield number, value - (1 << 64) if value >> 63 else value", "yield number, value", T_SEEN),
    _slip("seen-rounded-down", SEEN, "math.ceil(nanos / 1_000_000)", "nanos // 1_000_000", T_SEEN),
    _malice("grpc-any-token", GRPC, "if not hmac.compare_digest(given, self._authorization):", "if not given:", T_GRPC),
    _malice("grpc-any-path", GRPC, "found = self._methods.get(headers.get(b\":path\", b\"\"))", "found = next(iter(self._methods.values()))", T_GRPC),
    _malice("grpc-for-ever-without-token", GRPC, "        if not self.is_proven:\n            deadline", "        if self.is_proven:\n            deadline", T_GRPC),
    _malice("grpc-any-size", GRPC, "len(self.body) > _PREFIX + MAX_MESSAGE", "len(self.body) > 1_000 * MAX_MESSAGE", T_GRPC),
    _malice("grpc-flood", GRPC, "return goes_on and self._received <= MAX_RECEIVED", "return goes_on", T_GRPC),
    _malice("grpc-newcomers-end-the-proven", GRPC, "(each for each in self._connections if not each.is_proven)", "(each for each in self._connections if each.is_proven)", T_GRPC),
    _slip("grpc-part-of-a-message", GRPC, "!= len(body) - _PREFIX:", "> len(body) - _PREFIX:", T_GRPC),
    _malice("grpc-reset-and-again", GRPC, "if self._carried_out >= MAX_REQUESTS:", "if False:", T_GRPC),
)
# fmt: on

BUGS = (
    *_ADMISSION, *_CHAIN, *_SEQUENCE, *_WRITER, *_STREAMS_BUGS, *_INDEXER_BUGS, *_BACKFILLER_BUGS,
    *_ACCOUNT_BUGS, *_EDGE_BUGS, *_BLOCK_BUGS, *_INSTALLATION_BUGS, *_REBUILD_BUGS, *_FINDING_BUGS,
    *_SEEN_BUGS,
)  # fmt: skip
