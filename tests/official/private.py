"""What people do in private, through an AppView: it goes to bsync, and has to come back as rows."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.official.appview import AppView
from tests.official.network import XrpcError
from tests.official.people import People, Person
from tests.official.questions import Tokens

# Oneself cannot be muted or subscribed to: such deeds are refused with 400.
_CHANNELS = {"list": True, "push": False}


@dataclass(slots=True)
class PrivateLife:
    """People who mute, bookmark, draft, subscribe and set preferences."""

    people: People
    appview: AppView
    choose: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    _tokens: Tokens = field(init=False)
    _drafts: list[tuple[Person, str]] = field(default_factory=list)
    _done: list[tuple[Person, str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = Tokens(self.people, self.appview.did)

    def act(self) -> None:
        """Let somebody do something."""
        deeds: tuple[Callable[[Person], None], ...] = (
            self._mute, self._mute, self._mute_list, self._mute_thread, self._bookmark,
            self._bookmark, self._undo, self._draft, self._edit_draft, self._subscribe,
            self._prefer,
        )  # fmt: skip
        self.choose.choice(deeds)(self.people.somebody())

    def write(self, person: Person, method: str, body: Any) -> Any:
        """Call a method of the AppView; what it refuses is counted."""
        token = self._tokens.token(person, method)
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = self.people.network.call(self.appview.url, method, json=body, headers=headers)
        except XrpcError as error:
            self.refused[f"{method} {error.status}"] += 1
            return {}
        self.counts[method.rpartition(".")[2]] += 1
        return answer

    def see(self, person: Person, seen: str) -> None:
        """Say that the notifications up to a time were seen."""
        self.write(person, "app.bsky.notification.updateSeen", {"seenAt": seen})

    def _mute(self, person: Person) -> None:
        self._do(person, "graph.muteActor", {"actor": self.people.subjects.did()})

    def _mute_list(self, person: Person) -> None:
        found = self.people.subjects.other("app.bsky.graph.list")
        if found is not None:
            self._do(person, "graph.muteActorList", {"list": found.uri})

    def _mute_thread(self, person: Person) -> None:
        self._do(person, "graph.muteThread", {"root": self._post().uri})

    def _bookmark(self, person: Person) -> None:
        post = self._post()
        self._do(person, "bookmark.createBookmark", {"uri": post.uri, "cid": post.cid})

    def _undo(self, _: Person) -> None:
        if not self._done:
            return
        person, method, body = self._done.pop(self.choose.randrange(len(self._done)))
        undone = method.replace(".mute", ".unmute").replace("create", "delete")
        body = {name: value for name, value in body.items() if name != "cid"}
        self.write(person, f"app.bsky.{undone}", body)

    def _draft(self, person: Person) -> None:
        draft = {"posts": [{"text": f"draft {self.choose.random()}"}]}
        made = self.write(person, "app.bsky.draft.createDraft", {"draft": draft})
        if made:
            self._drafts.append((person, made["id"]))

    def _edit_draft(self, _: Person) -> None:
        if not self._drafts:
            return
        person, name = self.choose.choice(self._drafts)
        if self.choose.random() < 0.4:
            self.write(person, "app.bsky.draft.deleteDraft", {"id": name})
            self._drafts.remove((person, name))
            return
        draft = {"posts": [{"text": f"edited {self.choose.random()}"}]}
        self.write(person, "app.bsky.draft.updateDraft", {"draft": {"id": name, "draft": draft}})

    def _subscribe(self, person: Person) -> None:
        wanted = self.choose.random() < 0.8
        body = {"subject": self.people.subjects.did(),
                "activitySubscription": {"post": wanted, "reply": False}}  # fmt: skip
        self.write(person, "app.bsky.notification.putActivitySubscription", body)

    def _prefer(self, person: Person) -> None:
        if self.choose.random() < 0.5:
            body: dict[str, Any] = {"priority": self.choose.random() < 0.5}
            self.write(person, "app.bsky.notification.putPreferences", body)
            return
        body = {
            self.choose.choice(("like", "repost", "reply")): {"include": "follows", **_CHANNELS}
        }
        self.write(person, "app.bsky.notification.putPreferencesV2", body)

    def _do(self, person: Person, method: str, body: dict[str, Any]) -> None:
        self.write(person, f"app.bsky.{method}", body)
        self._done.append((person, method, body))

    def _post(self) -> Any:
        post = self.people.subjects.post()
        assert post is not None
        return post
