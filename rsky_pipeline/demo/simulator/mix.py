"""The kinds of records and events, and the share of each."""

LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
LIST = "app.bsky.graph.list"
LIST_ITEM = "app.bsky.graph.listitem"
LIST_BLOCK = "app.bsky.graph.listblock"
OPT_OUT = "app.bsky.graph.referencelistoptout"
PROFILE = "app.bsky.actor.profile"
THREAD_GATE = "app.bsky.feed.threadgate"  # written together with their posts
POST_GATE = "app.bsky.feed.postgate"
GENERATOR = "app.bsky.feed.generator"
STARTER_PACK = "app.bsky.graph.starterpack"
LABELER = "app.bsky.labeler.service"
VERIFICATION = "app.bsky.graph.verification"
STATUS = "app.bsky.actor.status"
NOTIFICATIONS = "app.bsky.notification.declaration"
CHAT = "chat.bsky.actor.declaration"
GERM = "com.germnetwork.declaration"
UNKNOWN = "app.bsky.simulated.note"  # passes a prefix filter, but nobody indexes it
FOREIGN = ("com.example.scrobble", "com.whtwnd.blog.entry", "sh.example.repo.star")

REACTED_TO = frozenset({POST, REPOST, LIST, GENERATOR, STARTER_PACK, LABELER})

# Thousandths, as on the real network in 2026, with a little more of the rare kinds.
RECORDS = {
    LIKE: 639, POST: 125, REPOST: 80, FOLLOW: 92, BLOCK: 9, PROFILE: 10, LIST: 2, LIST_ITEM: 8,
    LIST_BLOCK: 1, OPT_OUT: 1, POST_GATE: 1, GENERATOR: 1, STARTER_PACK: 1, LABELER: 1,
    VERIFICATION: 2, STATUS: 2, NOTIFICATIONS: 1, CHAT: 1, GERM: 1, UNKNOWN: 2, FOREIGN[0]: 12,
    FOREIGN[1]: 4, FOREIGN[2]: 4,
}  # fmt: skip

# Kinds of events, in ten-thousandths. Accounts change their status much more often than real ones
# do, so that a short run has some of all that follows from it.
CREATE, DELETE, EDIT, REPEAT = "create", "delete", "edit", "repeat"
SEVERAL, NOTHING, SYNC, ACCOUNT, IDENTITY = "several", "nothing", "sync", "account", "identity"
EVENTS = {
    CREATE: 8_820, DELETE: 450, EDIT: 130, REPEAT: 60, SEVERAL: 430, NOTHING: 20, SYNC: 5,
    ACCOUNT: 45, IDENTITY: 40,
}  # fmt: skip
RESYNCED = (SYNC, ACCOUNT)  # after these a repo is fetched again
