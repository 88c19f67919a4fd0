/* Commits proven without the interpreter: `prove` reads the blocks of one commit, checks hashes,
 * commit object, signature and operations, and writes the events of its operations.
 *
 * Whatever is not well-formed and usual makes it return 0, and Python reads the commit again; the
 * rules, and the words for what breaks them, are there: `car`, `commit`, `mst`, `dagjson`. Every
 * step below names its counterpart. Nothing here owns memory but `Arena` and `Output`.
 *
 * Reading is bounded: `At` moves between two pointers, and `take` is its only way forward. Memory
 * of one commit is bounded by USUAL_MEMORY, recursion by USUAL_DEPTH and by the layers of a tree.
 */
#ifndef RSKY_PROVE_H
#define RSKY_PROVE_H

#include <stdlib.h>
#include <time.h>

#include "secp256k1.h"
#include "sha256.h"

enum {
    CID = 36,
    LINK = 5, /* the head of a link, before the CID */
    MAX_BLOCK = 1048576,
    MAX_ENTRIES = 10000,
    MAX_KEY = 1024,
    MAX_RKEY = 512,
    USUAL_DEPTH = 32, /* of records */
    USUAL_RECORD = 65536,
    USUAL_BLOCKS = 4096, /* whose table may be searched from end to end at each look-up */
    USUAL_MEMORY = 16 * 1024 * 1024,
    USUAL_DID = 2048,
    USUAL_NSID = 63,
    PIECE = 256 * 1024
};

typedef const unsigned char *Bytes;
typedef enum { CHECK_RECORDS = 0, CHECK_SIGNATURE = 1, CHECK_ALL = 2 } Mode;
typedef enum { UNCHECKED = 0, GOOD = 1, BAD = 2 } Verdict;

typedef struct {
    Bytes path, cid, prev; /* no CID: NULL */
    size_t path_size;
    char action; /* its first letter */
    char kept; /* an event is made of it */
} Operation;

typedef struct {
    /* Given: the fields of a CommitMessage, which is well-formed, and the account's key. */
    Bytes did, rev, time, root, blocks, prev_data;
    size_t did_size, time_size, blocks_size;
    long long seq;
    const Operation *operations;
    size_t operations_count;
    secp256k1_pubkey key;
    char has_key;
    /* Found. */
    char proven;
    Verdict signature;
    unsigned char data[CID]; /* the tree's root */
    Bytes commit; /* its block, in `blocks` */
    size_t commit_size;
    size_t first_event, events_count; /* among the ends in `Proofs` */
} Commit;

/* Memory. */

typedef struct Piece {
    struct Piece *before;
} Piece;

typedef struct {
    Piece *pieces; /* the first one is kept from commit to commit */
    unsigned char *at, *end;
    size_t used;
} Arena;

typedef struct {
    unsigned char *start;
    size_t size, room;
    char failed;
} Output;

typedef struct {
    Arena arena;
    Output events; /* one behind the other */
    size_t *ends; /* of the events */
    size_t ends_count, ends_room;
    double seconds[3]; /* blocks and records, operations, signatures */
} Proofs;

static void *arena_get(Arena *arena, size_t size) {
    void *found;
    size = (size + 15) & ~(size_t)15;
    if (size > USUAL_MEMORY || arena->used + size > USUAL_MEMORY) {
        return NULL;
    }
    if ((size_t)(arena->end - arena->at) < size || arena->pieces == NULL) {
        const size_t room = size > PIECE ? size : PIECE;
        Piece *piece = malloc(sizeof(Piece) + 16 + room);
        if (piece == NULL) {
            return NULL;
        }
        piece->before = arena->pieces;
        arena->pieces = piece;
        arena->at = (unsigned char *)piece + ((sizeof(Piece) + 15) & ~(size_t)15);
        arena->end = arena->at + room;
    }
    found = arena->at;
    arena->at += size;
    arena->used += size;
    return found;
}

static void arena_free(Arena *arena, const Piece *until) {
    while (arena->pieces != NULL && arena->pieces != until) {
        Piece *before = arena->pieces->before;
        free(arena->pieces);
        arena->pieces = before;
    }
    arena->used = 0;
    arena->at = arena->end = NULL;
}

/* Forget everything but the first piece, which is used again. */
static void arena_reset(Arena *arena) {
    const Piece *first = arena->pieces;
    while (first != NULL && first->before != NULL) {
        first = first->before;
    }
    arena_free(arena, first);
    if (arena->pieces != NULL) { /* it has at least this room */
        arena->at = (unsigned char *)arena->pieces + ((sizeof(Piece) + 15) & ~(size_t)15);
        arena->end = arena->at + PIECE;
    }
}

static void put(Output *output, const void *data, size_t size) {
    if (size > output->room - output->size) {
        const size_t room = 2 * (output->size + size) + 4096;
        unsigned char *start = output->failed ? NULL : realloc(output->start, room);
        if (start == NULL) {
            output->failed = 1;
            return;
        }
        output->start = start;
        output->room = room;
    }
    if (size > 0) {
        memcpy(output->start + output->size, data, size);
        output->size += size;
    }
}

#define PUT(output, text) put(output, text, sizeof(text) - 1)

/* Reading. */

typedef struct {
    Bytes at, end;
} At;

static size_t left(const At *from) {
    return (size_t)(from->end - from->at);
}

/* Return the next bytes, or NULL if there are not so many. */
static Bytes take(At *from, size_t size) {
    Bytes found = from->at;
    if (left(from) < size) {
        return NULL;
    }
    from->at += size;
    return found;
}

static int take_exactly(At *from, const void *expected, size_t size) {
    Bytes found = take(from, size);
    return found != NULL && memcmp(found, expected, size) == 0;
}

#define TAKE(from, text) take_exactly(from, text, sizeof(text) - 1)

/* Read the head of an item of one kind (its major type), in its shortest form; else return 0. */
static int take_head(At *from, unsigned int kind, uint64_t *number) {
    Bytes head = take(from, 1), more;
    size_t width, index;
    if (head == NULL || *head >> 5 != kind || (*head & 31) > 27) {
        return 0;
    }
    *number = *head & 31;
    if (*number < 24) {
        return 1;
    }
    width = (size_t)1 << (*number - 24);
    more = take(from, width);
    if (more == NULL) {
        return 0;
    }
    *number = 0;
    for (index = 0; index < width; index++) {
        *number = *number << 8 | more[index];
    }
    return *number >= 24 && (width == 1 || *number >> (4 * width) != 0);
}

static int is_cid(Bytes cid) {
    return cid[0] == 1 && (cid[1] == 0x71 || cid[1] == 0x55) && cid[2] == 0x12 && cid[3] == 0x20;
}

/* Return the CID of a link, NULL if there is none. */
static Bytes take_link(At *from) {
    Bytes cid;
    if (!TAKE(from, "\xd8\x2a\x58\x25\x00")) {
        return NULL;
    }
    cid = take(from, CID);
    return cid != NULL && is_cid(cid) ? cid : NULL;
}

/* Blocks (`car`). */

typedef struct {
    Bytes cid, data;
    size_t size;
} Block;

typedef struct {
    Block *slots; /* open addressing by the first bytes of the hash */
    size_t mask;
} Blocks;

static Block *slot_of(const Blocks *blocks, Bytes cid) {
    size_t place = ((size_t)cid[4] | (size_t)cid[5] << 8) & blocks->mask;
    while (blocks->slots[place].cid != NULL && memcmp(blocks->slots[place].cid, cid, CID) != 0) {
        place = (place + 1) & blocks->mask;
    }
    return &blocks->slots[place];
}

static const Block *find_block(const Blocks *blocks, Bytes cid) {
    const Block *found = slot_of(blocks, cid);
    return found->cid == NULL ? NULL : found;
}

static int has_its_hash(const Block *block) {
    unsigned char digest[32];
    sha256(block->data, block->size, digest);
    return memcmp(digest, block->cid + 4, 32) == 0;
}

static int take_block(At *from, Block *block) {
    size_t length = 0;
    int shift;
    for (shift = 0; shift < 35; shift += 7) {
        Bytes byte = take(from, 1);
        if (byte == NULL) {
            return 0;
        }
        length |= (size_t)(*byte & 127) << shift;
        if (*byte < 128) {
            if (*byte == 0 && shift > 0) {
                return 0;
            }
            break;
        }
    }
    if (shift == 35 || length < CID || length > CID + MAX_BLOCK) {
        return 0;
    }
    block->cid = take(from, CID);
    block->size = length - CID;
    block->data = block->cid == NULL ? NULL : take(from, block->size);
    return block->data != NULL;
}

/* Read the blocks of a CAR whose only root is the commit; with `hashes`, each must have its own. */
static int read_blocks(Arena *arena, const Commit *commit, int hashes, Blocks *blocks) {
    At car = {commit->blocks, commit->blocks + commit->blocks_size}, ahead;
    Block block;
    size_t count = 0, room = 16;
    if (!TAKE(&car, "\x3a\xa2" "eroots\x81\xd8\x2a\x58\x25\x00")
        || !take_exactly(&car, commit->root, CID) || !TAKE(&car, "gversion\x01")) {
        return 0;
    }
    ahead = car;
    while (left(&ahead) > 0) {
        count++;
        if (count > USUAL_BLOCKS || !take_block(&ahead, &block)) {
            return 0;
        }
    }
    while (room < 2 * count) {
        room *= 2;
    }
    blocks->mask = room - 1;
    blocks->slots = arena_get(arena, room * sizeof(Block));
    if (blocks->slots == NULL) {
        return 0;
    }
    memset(blocks->slots, 0, room * sizeof(Block));
    while (left(&car) > 0) {
        if (!take_block(&car, &block) || (hashes && (!is_cid(block.cid) || !has_its_hash(&block)))) {
            return 0;
        }
        *slot_of(blocks, block.cid) = block; /* the last one of a name counts, as in a dict */
    }
    return 1;
}

/* The commit object (`commit`). */

static int head_of(unsigned char *head, unsigned int kind, size_t number) {
    if (number < 24) {
        head[0] = (unsigned char)(kind << 5 | number);
        return 1;
    }
    if (number < 256) {
        head[0] = (unsigned char)(kind << 5 | 24);
        head[1] = (unsigned char)number;
        return 2;
    }
    head[0] = (unsigned char)(kind << 5 | 25); /* callers have less than 65,536 */
    head[1] = (unsigned char)(number >> 8);
    head[2] = (unsigned char)number;
    return 3;
}

/* Read the commit object of the message's account and rev, and check its signature. */
static int read_commit(Arena *arena, Commit *commit, const Block *block, double *seconds);

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int read_commit(Arena *arena, Commit *commit, const Block *block, double *seconds) {
    At from = {block->data, block->data + block->size};
    Bytes signature, unsigned_tail, cid;
    unsigned char head[3], digest[32], *unsigned_bytes;
    size_t before_signature, after_signature;
    const double begin = seconds_now();
    commit->commit = block->data;
    commit->commit_size = block->size;
    if (commit->did_size > USUAL_DID || !TAKE(&from, "\xa6" "cdid")
        || !take_exactly(&from, head, (size_t)head_of(head, 3, commit->did_size))
        || !take_exactly(&from, commit->did, commit->did_size) || !TAKE(&from, "crev\x6d")
        || !take_exactly(&from, commit->rev, 13)) {
        return 0;
    }
    before_signature = (size_t)(from.at - block->data);
    if (!TAKE(&from, "csig\x58\x40")) {
        return 0;
    }
    signature = take(&from, 64);
    unsigned_tail = from.at;
    if (signature == NULL || !TAKE(&from, "ddata") || (cid = take_link(&from)) == NULL
        || cid[1] != 0x71 || !TAKE(&from, "dprev")) {
        return 0;
    }
    memcpy(commit->data, cid, CID);
    if (left(&from) > 0 && *from.at == 0xf6) {
        from.at++;
    } else if (take_link(&from) == NULL) {
        return 0;
    }
    if (!TAKE(&from, "gversion\x03") || left(&from) > 0) {
        return 0;
    }
    commit->signature = UNCHECKED;
    if (commit->has_key) {
        secp256k1_ecdsa_signature parsed;
        after_signature = (size_t)(from.end - unsigned_tail);
        unsigned_bytes = arena_get(arena, before_signature + after_signature);
        if (unsigned_bytes == NULL) {
            return 0;
        }
        memcpy(unsigned_bytes, block->data, before_signature);
        unsigned_bytes[0] = 0xa5; /* a map without the signature */
        memcpy(unsigned_bytes + before_signature, unsigned_tail, after_signature);
        sha256(unsigned_bytes, before_signature + after_signature, digest);
        commit->signature =
            secp256k1_ecdsa_signature_parse_compact(secp256k1_context_static, &parsed, signature)
                && secp256k1_ecdsa_verify(secp256k1_context_static, &parsed, digest, &commit->key)
            ? GOOD : BAD;
    }
    *seconds += seconds_now() - begin;
    return 1;
}

/* Trees (`mst.node`, `mst.load`): a child is nothing, a CID, or a node that was read or made. */

typedef struct Node Node;

typedef struct {
    Bytes cid;
    Node *node;
} Child;

typedef struct {
    Bytes key, value;
    size_t size;
} Entry;

struct Node {
    int layer;
    char changed;
    size_t count, room; /* of entries; there is one child more */
    Entry *entries;
    Child *children;
    unsigned char cid[CID];
};

typedef struct {
    Arena *arena;
    const Blocks *blocks;
    char failed; /* by want of memory, or since it is not usual */
} Tree;

static const Child nothing = {NULL, NULL};

static int is_nothing(const Child *child) {
    return child->cid == NULL && child->node == NULL;
}

static unsigned char key_letters[256];

static int is_letter(unsigned int letter) {
    return key_letters[letter & 255];
}

static int layer_of(Bytes key, size_t size) {
    unsigned char digest[32];
    int bits = 0;
    sha256(key, size, digest);
    while (bits < 256 && !(digest[bits / 8] & (0x80 >> bits % 8))) {
        bits++;
    }
    return bits / 2;
}

static Node *new_node(Tree *tree, int layer, size_t count) {
    Node *node = arena_get(tree->arena, sizeof(Node));
    const size_t room = count + 4;
    if (node == NULL) {
        tree->failed = 1;
        return NULL;
    }
    memset(node, 0, sizeof *node);
    node->layer = layer;
    node->count = count;
    node->room = room;
    node->entries = arena_get(tree->arena, room * sizeof(Entry));
    node->children = arena_get(tree->arena, (room + 1) * sizeof(Child));
    if (node->entries == NULL || node->children == NULL) {
        tree->failed = 1;
        return NULL;
    }
    memset(node->children, 0, (room + 1) * sizeof(Child));
    return node;
}

/* Whether a key may stand in a tree: collection, slash, record key, of the allowed letters. */
static int is_key(Bytes key, size_t size) {
    size_t index, slashes = 0;
    if (size == 0 || size > MAX_KEY || key[0] == '/' || key[size - 1] == '/') {
        return 0;
    }
    for (index = 0; index < size; index++) {
        if (key[index] == '/') {
            slashes++;
        } else if (!is_letter(key[index])) {
            return 0;
        }
    }
    return slashes == 1;
}

static int take_child(At *from, Child *child) {
    *child = nothing;
    if (left(from) > 0 && *from->at == 0xf6) {
        from->at++;
        return 1;
    }
    child->cid = take_link(from);
    return child->cid != NULL && child->cid[1] == 0x71;
}

/* Read the block of a node, which must be canonical and in order; NULL leaves it to Python. */
static Node *parse_node(Tree *tree, const Block *block) {
    At from = {block->data, block->data + block->size};
    uint64_t count, suffix_size, shared;
    size_t index;
    Bytes before = NULL;
    size_t before_size = 0;
    Node *node;
    if (!TAKE(&from, "\xa2" "ae") || !take_head(&from, 4, &count) || count > MAX_ENTRIES
        || count > left(&from)) {
        return NULL;
    }
    node = new_node(tree, 0, (size_t)count);
    if (node == NULL) {
        return NULL;
    }
    for (index = 0; index < count; index++) {
        Entry *entry = &node->entries[index];
        Bytes suffix;
        unsigned char *key;
        if (!TAKE(&from, "\xa4" "ak") || !take_head(&from, 2, &suffix_size) || suffix_size == 0
            || suffix_size > MAX_KEY) {
            return NULL;
        }
        suffix = take(&from, (size_t)suffix_size);
        if (suffix == NULL || !TAKE(&from, "ap") || !take_head(&from, 0, &shared)
            || shared > before_size || shared + suffix_size > MAX_KEY
            || (shared < before_size && suffix[0] <= before[shared])) {
            return NULL;
        }
        entry->key = suffix;
        entry->size = (size_t)(shared + suffix_size);
        if (shared > 0) {
            key = arena_get(tree->arena, entry->size);
            if (key == NULL) {
                return NULL;
            }
            memcpy(key, before, (size_t)shared);
            memcpy(key + shared, suffix, (size_t)suffix_size);
            entry->key = key;
        }
        if (!is_key(entry->key, entry->size) || !TAKE(&from, "at")
            || !take_child(&from, &node->children[index + 1]) || !TAKE(&from, "av")
            || (entry->value = take_link(&from)) == NULL) {
            return NULL;
        }
        before = entry->key;
        before_size = entry->size;
    }
    if (!TAKE(&from, "al") || !take_child(&from, &node->children[0]) || left(&from) > 0) {
        return NULL;
    }
    return node;
}

/* Read a node; `layer` is what its parent demands, -1 at the top. Only its first key is held to
 * it, as in every partial tree. */
static Node *read_node(Tree *tree, Bytes cid, int layer) {
    const Block *block = find_block(tree->blocks, cid);
    Node *node = block == NULL ? NULL : parse_node(tree, block);
    size_t index;
    if (node == NULL) {
        tree->failed = 1;
        return NULL;
    }
    memcpy(node->cid, cid, CID);
    if (node->count > 0) {
        node->layer = layer_of(node->entries[0].key, node->entries[0].size);
        if (layer >= 0 && node->layer != layer) {
            tree->failed = 1;
        }
    } else {
        node->layer = layer < 0 ? 0 : layer;
        if ((layer < 0) != is_nothing(&node->children[0])) {
            tree->failed = 1;
        }
    }
    for (index = 0; node->layer == 0 && index <= node->count; index++) {
        if (!is_nothing(&node->children[index])) {
            tree->failed = 1;
        }
    }
    return tree->failed ? NULL : node;
}

/* Return the node of a child, NULL if there is nothing or if it cannot be had (`failed`). */
static Node *load(Tree *tree, Child *child, int layer) {
    if (child->node == NULL && child->cid != NULL && !tree->failed) {
        child->node = read_node(tree, child->cid, layer);
    }
    return tree->failed ? NULL : child->node;
}

/* Changing a tree (`mst.edit`). Nodes are changed in place: nothing else looks at them. */

static int compare_keys(Bytes one, size_t one_size, Bytes other, size_t other_size) {
    const int order = memcmp(one, other, one_size < other_size ? one_size : other_size);
    return order != 0 ? order : (one_size > other_size) - (one_size < other_size);
}

/* Return the index of the first key that is not below a key, and whether it is that key. */
static size_t place_of(const Node *node, const Entry *wanted, int *found) {
    size_t low = 0, high = node->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const Entry *entry = &node->entries[middle];
        if (compare_keys(entry->key, entry->size, wanted->key, wanted->size) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    *found = low < node->count
        && compare_keys(node->entries[low].key, node->entries[low].size, wanted->key, wanted->size)
            == 0;
    return low;
}

/* Return the value of a key, or NULL. */
static Bytes find(Tree *tree, Node *node, const Entry *wanted) {
    int found;
    while (node != NULL) {
        const size_t index = place_of(node, wanted, &found);
        if (found) {
            return node->entries[index].value;
        }
        node = load(tree, &node->children[index], node->layer - 1);
    }
    return NULL;
}

static Node *node_with(Tree *tree, const Entry *entry, int layer) {
    Node *node = new_node(tree, layer, 1);
    if (node != NULL) {
        node->changed = 1;
        node->entries[0] = *entry;
    }
    return node;
}

static Child made(Node *node) {
    Child child = {NULL, NULL};
    child.node = node;
    return child;
}

/* Put nodes without keys over a subtree until it is on a layer. */
static Node *raise_to(Tree *tree, Node *node, int layer) {
    while (node != NULL && node->layer < layer) {
        Node *above = new_node(tree, node->layer + 1, 0);
        if (above == NULL) {
            return NULL;
        }
        above->changed = 1;
        above->children[0] = made(node);
        node = above;
    }
    return node;
}

/* Cut a subtree into the parts below and above a key that it does not hold. */
static void split(Tree *tree, Node *node, const Entry *entry, Node **below, Node **above) {
    Node *lower, *upper, *right;
    size_t index;
    int found;
    *below = *above = NULL;
    if (node == NULL || tree->failed) {
        return;
    }
    index = place_of(node, entry, &found);
    split(tree, load(tree, &node->children[index], node->layer - 1), entry, &lower, &upper);
    if (tree->failed) {
        return;
    }
    if (lower == NULL && index == 0) {
        if (upper != node->children[0].node) {
            node->children[0] = made(upper);
            node->changed = 1;
        } else if (upper != NULL) {
            node->changed |= upper->changed;
        }
        *above = node;
        return;
    }
    if (upper == NULL && index == node->count) {
        if (lower != node->children[index].node) {
            node->children[index] = made(lower);
            node->changed = 1;
        } else if (lower != NULL) {
            node->changed |= lower->changed;
        }
        *below = node;
        return;
    }
    right = new_node(tree, node->layer, node->count - index);
    if (right == NULL) {
        return;
    }
    memcpy(right->entries, node->entries + index, (node->count - index) * sizeof(Entry));
    memcpy(right->children, node->children + index, (node->count - index + 1) * sizeof(Child));
    right->children[0] = made(upper);
    right->changed = node->changed = 1;
    node->count = index;
    node->children[index] = made(lower);
    *below = node;
    *above = right;
}

static int make_room(Tree *tree, Node *node) {
    Entry *entries;
    Child *children;
    const size_t room = 2 * node->room + 4;
    if (node->count < node->room) {
        return 1;
    }
    entries = arena_get(tree->arena, room * sizeof(Entry));
    children = arena_get(tree->arena, (room + 1) * sizeof(Child));
    if (entries == NULL || children == NULL) {
        tree->failed = 1;
        return 0;
    }
    memcpy(entries, node->entries, node->count * sizeof(Entry));
    memcpy(children, node->children, (node->count + 1) * sizeof(Child));
    node->entries = entries;
    node->children = children;
    node->room = room;
    return 1;
}

/* Put a key into a subtree whose layer is that of the key, or above it. */
static void insert_below(Tree *tree, Node *node, const Entry *entry, int layer) {
    Node *child, *below, *above;
    int found;
    const size_t index = place_of(node, entry, &found);
    node->changed = 1;
    if (found) {
        node->entries[index].value = entry->value;
        return;
    }
    child = load(tree, &node->children[index], node->layer - 1);
    if (tree->failed) {
        return;
    }
    if (node->layer > layer) {
        if (child == NULL) {
            child = raise_to(tree, node_with(tree, entry, layer), node->layer - 1);
            node->children[index] = made(child);
        } else {
            insert_below(tree, child, entry, layer);
        }
        return;
    }
    split(tree, child, entry, &below, &above);
    if (tree->failed || !make_room(tree, node)) {
        return;
    }
    memmove(node->entries + index + 1, node->entries + index,
            (node->count - index) * sizeof(Entry));
    memmove(node->children + index + 2, node->children + index + 1,
            (node->count - index) * sizeof(Child));
    node->entries[index] = *entry;
    node->children[index] = made(below);
    node->children[index + 1] = made(above);
    node->count++;
}

/* Return the tree with a key set to a value, whether it was there or not. */
static Node *insert(Tree *tree, Node *node, const Entry *entry) {
    const int layer = layer_of(entry->key, entry->size);
    Node *below, *above, *top;
    if (node == NULL || (node->count == 0 && is_nothing(&node->children[0]))) {
        return node_with(tree, entry, layer);
    }
    if (node->layer >= layer) {
        insert_below(tree, node, entry, layer);
        return node;
    }
    split(tree, node, entry, &below, &above);
    top = tree->failed ? NULL : node_with(tree, entry, layer);
    if (top != NULL) {
        top->children[0] = made(raise_to(tree, below, layer - 1));
        top->children[1] = made(raise_to(tree, above, layer - 1));
    }
    return top;
}

/* Join two neighbouring subtrees of one layer. */
static Child merge(Tree *tree, Child left_child, Child right_child, int layer) {
    Node *first, *second, *joined;
    if (is_nothing(&left_child) || is_nothing(&right_child)) {
        return is_nothing(&left_child) ? right_child : left_child;
    }
    first = load(tree, &left_child, layer);
    second = load(tree, &right_child, layer);
    if (first == NULL || second == NULL) {
        return nothing;
    }
    joined = new_node(tree, layer, first->count + second->count);
    if (joined == NULL) {
        return nothing;
    }
    joined->changed = 1;
    memcpy(joined->entries, first->entries, first->count * sizeof(Entry));
    memcpy(joined->entries + first->count, second->entries, second->count * sizeof(Entry));
    memcpy(joined->children, first->children, first->count * sizeof(Child));
    memcpy(joined->children + first->count + 1, second->children + 1,
           second->count * sizeof(Child));
    joined->children[first->count] =
        merge(tree, first->children[first->count], second->children[0], layer - 1);
    return made(joined);
}

/* Return the tree without a key, which is there; NULL when nothing is left. */
static Node *remove_key(Tree *tree, Node *node, const Entry *entry) {
    int found;
    const size_t index = place_of(node, entry, &found);
    node->changed = 1;
    if (found) {
        const Child merged =
            merge(tree, node->children[index], node->children[index + 1], node->layer - 1);
        node->count--;
        memmove(node->entries + index, node->entries + index + 1,
                (node->count - index) * sizeof(Entry));
        memmove(node->children + index + 1, node->children + index + 2,
                (node->count - index) * sizeof(Child));
        node->children[index] = merged;
    } else {
        Node *child = load(tree, &node->children[index], node->layer - 1);
        if (child == NULL) {
            tree->failed = 1;
            return NULL;
        }
        node->children[index] = made(remove_key(tree, child, entry));
    }
    return node->count == 0 && is_nothing(&node->children[0]) ? NULL : node;
}

static size_t shared_length(const Entry *one, const Entry *other) {
    size_t size = 0;
    while (size < one->size && size < other->size && one->key[size] == other->key[size]) {
        size++;
    }
    return size;
}

static void put_head(Output *output, unsigned int kind, size_t number) {
    unsigned char head[3];
    put(output, head, (size_t)head_of(head, kind, number));
}

static void seal(Tree *tree, Node *node, Output *scratch);

static void put_child(Tree *tree, Child *child, Output *scratch) {
    if (is_nothing(child)) {
        PUT(scratch, "\xf6");
        return;
    }
    PUT(scratch, "\xd8\x2a\x58\x25\x00");
    put(scratch, child->node == NULL ? child->cid : child->node->cid, CID);
}

/* Set the CIDs of all nodes that were changed. The block is written behind those of its parents'
 * callers, and taken away again. */
static void seal(Tree *tree, Node *node, Output *scratch) {
    const size_t start = scratch->size;
    size_t index;
    if (!node->changed) {
        return;
    }
    for (index = 0; index <= node->count; index++) {
        if (node->children[index].node != NULL) {
            seal(tree, node->children[index].node, scratch);
        }
    }
    PUT(scratch, "\xa2" "ae");
    put_head(scratch, 4, node->count);
    for (index = 0; index < node->count; index++) {
        const Entry *entry = &node->entries[index];
        const size_t shared = index == 0 ? 0 : shared_length(entry - 1, entry);
        PUT(scratch, "\xa4" "ak");
        put_head(scratch, 2, entry->size - shared);
        put(scratch, entry->key + shared, entry->size - shared);
        PUT(scratch, "ap");
        put_head(scratch, 0, shared);
        PUT(scratch, "at");
        put_child(tree, &node->children[index + 1], scratch);
        PUT(scratch, "av\xd8\x2a\x58\x25\x00");
        put(scratch, entry->value, CID);
    }
    PUT(scratch, "al");
    put_child(tree, &node->children[0], scratch);
    if (scratch->failed) {
        tree->failed = 1;
        return;
    }
    memcpy(node->cid, "\x01\x71\x12\x20", 4);
    sha256(scratch->start + start, scratch->size - start, node->cid + 4);
    scratch->size = start;
    node->changed = 0;
}

/* Undoing operations (`mst.inversion`). */

static int later_path_first(const void *one, const void *other) {
    const Operation *const *first = one, *const *second = other;
    return compare_keys((*second)->path, (*second)->path_size, (*first)->path, (*first)->path_size);
}

static int same_cid(Bytes one, Bytes other) {
    return one == NULL || other == NULL ? one == other : memcmp(one, other, CID) == 0;
}

/* Return whether the operations lead back from the signed tree to that of prevData. */
static int leads_back(Arena *arena, const Commit *commit, const Blocks *blocks, Output *scratch) {
    Tree tree = {NULL, NULL, 0};
    const size_t count = commit->operations_count;
    const Operation **operations = arena_get(arena, (count + 1) * sizeof *operations);
    Node *top;
    size_t index;
    tree.arena = arena;
    tree.blocks = blocks;
    if (operations == NULL || commit->prev_data == NULL) {
        return 0;
    }
    for (index = 0; index < count; index++) {
        operations[index] = &commit->operations[index];
    }
    qsort(operations, count, sizeof *operations, later_path_first);
    top = read_node(&tree, commit->data, -1);
    for (index = 0; index < count && !tree.failed; index++) {
        const Operation *operation = operations[index];
        Entry entry;
        entry.key = operation->path;
        entry.size = operation->path_size;
        entry.value = operation->prev;
        if (!is_key(entry.key, entry.size)
            || !same_cid(find(&tree, top, &entry), operation->cid) || tree.failed) {
            return 0;
        }
        if (operation->prev != NULL) {
            top = insert(&tree, top, &entry);
        } else if (operation->cid != NULL) {
            top = remove_key(&tree, top, &entry);
        }
    }
    /* Nodes without keys are taken off the top. The one below may be missing: its CID is known. */
    while (!tree.failed && top != NULL && top->count == 0) {
        Child *child = &top->children[0];
        if (child->node == NULL && child->cid != NULL && find_block(blocks, child->cid) == NULL) {
            return same_cid(child->cid, commit->prev_data);
        }
        top = load(&tree, child, top->layer - 1);
    }
    if (tree.failed) {
        return 0;
    }
    if (top == NULL) {
        top = new_node(&tree, 0, 0);
        if (top == NULL) {
            return 0;
        }
        top->changed = 1;
    }
    scratch->size = 0;
    seal(&tree, top, scratch);
    return !tree.failed && same_cid(top->cid, commit->prev_data);
}

/* Events (`dagjson`, `streams.event`). */

static int is_utf8(Bytes text, size_t size) {
    size_t index = 0;
    while (index < size) {
        const unsigned char c = text[index];
        size_t more;
        uint32_t letter, least;
        if (c < 0x80) {
            index++;
            continue;
        }
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1, letter = c & 0x1f, least = 0x80;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2, letter = c & 0x0f, least = 0x800;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3, letter = c & 0x07, least = 0x10000;
        } else {
            return 0;
        }
        if (size - index <= more) {
            return 0;
        }
        for (index++; more > 0; more--, index++) {
            if ((text[index] & 0xc0) != 0x80) {
                return 0;
            }
            letter = letter << 6 | (text[index] & 0x3f);
        }
        if (letter < least || letter > 0x10ffff || (letter >= 0xd800 && letter <= 0xdfff)) {
            return 0;
        }
    }
    return 1;
}

/* Append a text in quotes; 0 if it is not UTF-8. */
static int put_text(Output *output, Bytes text, size_t size) {
    static const char hex[] = "0123456789abcdef";
    size_t index, plain = 0;
    unsigned char seen = 0;
    PUT(output, "\"");
    for (index = 0; index < size; index++) {
        const unsigned char c = text[index];
        unsigned char escaped[6] = {'\\', 'u', '0', '0', 0, 0};
        seen |= c;
        if (c >= 0x20 && c != '"' && c != '\\') {
            continue;
        }
        put(output, text + plain, index - plain);
        plain = index + 1;
        escaped[4] = (unsigned char)hex[c >> 4];
        escaped[5] = (unsigned char)hex[c & 15];
        switch (c) {
            case '"': PUT(output, "\\\""); break;
            case '\\': PUT(output, "\\\\"); break;
            case '\n': PUT(output, "\\n"); break;
            case '\r': PUT(output, "\\r"); break;
            case '\t': PUT(output, "\\t"); break;
            case '\b': PUT(output, "\\b"); break;
            case '\f': PUT(output, "\\f"); break;
            default: put(output, escaped, sizeof escaped);
        }
    }
    put(output, text + plain, size - plain);
    PUT(output, "\"");
    return seen < 0x80 || is_utf8(text, size);
}

static void put_cid(Output *output, Bytes cid) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char text[59];
    unsigned int bits = 0;
    int held = 0, index, size = 0;
    text[size++] = 'b';
    for (index = 0; index < CID; index++) {
        bits = bits << 8 | cid[index];
        for (held += 8; held >= 5;) {
            held -= 5;
            text[size++] = (unsigned char)letters[bits >> held & 31];
        }
        bits &= 31;
    }
    text[size++] = (unsigned char)letters[bits << (5 - held) & 31];
    put(output, text, (size_t)size);
}

static void put_base64(Output *output, Bytes data, size_t size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t index;
    for (index = 0; index < size; index += 3) {
        const size_t more = size - index;
        const uint32_t bits = (uint32_t)data[index] << 16
            | (more > 1 ? (uint32_t)data[index + 1] << 8 : 0) | (more > 2 ? data[index + 2] : 0);
        unsigned char text[4];
        text[0] = (unsigned char)letters[bits >> 18];
        text[1] = (unsigned char)letters[bits >> 12 & 63];
        text[2] = (unsigned char)letters[bits >> 6 & 63];
        text[3] = (unsigned char)letters[bits & 63];
        put(output, text, more > 2 ? 4 : more + 1); /* without padding */
    }
}

static void put_number(Output *output, uint64_t number, int negative) {
    unsigned char text[24];
    size_t at = sizeof text;
    do {
        text[--at] = (unsigned char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    if (negative) {
        text[--at] = '-';
    }
    put(output, text + at, sizeof text - at);
}

/* Append the JSON of the next item; 0 leaves it to Python. */
static int put_item(Output *output, At *from, int depth) {
    uint64_t number;
    Bytes data, before = NULL;
    size_t index, before_size = 0;
    unsigned int kind;
    if (left(from) == 0) {
        return 0;
    }
    if (*from->at == 0xd8) {
        data = take_link(from);
        if (data == NULL) {
            return 0;
        }
        PUT(output, "{\"$link\":\"");
        put_cid(output, data);
        PUT(output, "\"}");
        return 1;
    }
    kind = *from->at >> 5;
    if (kind == 7) {
        switch (*take(from, 1)) {
            case 0xf4: PUT(output, "false"); return 1;
            case 0xf5: PUT(output, "true"); return 1;
            case 0xf6: PUT(output, "null"); return 1;
            default: return 0;
        }
    }
    if (!take_head(from, kind, &number)) {
        return 0;
    }
    if (kind < 2) {
        if (number > INT64_MAX) {
            return 0;
        }
        put_number(output, number + kind, kind == 1); /* -1 - number */
        return 1;
    }
    if (kind == 6 || number > USUAL_RECORD) {
        return 0;
    }
    if (kind < 4) {
        data = take(from, (size_t)number);
        if (data == NULL) {
            return 0;
        }
        if (kind == 3) {
            return put_text(output, data, (size_t)number);
        }
        PUT(output, "{\"$bytes\":\"");
        put_base64(output, data, (size_t)number);
        PUT(output, "\"}");
        return 1;
    }
    if (depth == 0 || output->failed) {
        return 0;
    }
    if (kind == 4) {
        PUT(output, "[");
        for (index = 0; index < number; index++) {
            if (index > 0) {
                PUT(output, ",");
            }
            if (!put_item(output, from, depth - 1)) {
                return 0;
            }
        }
        PUT(output, "]");
        return 1;
    }
    PUT(output, "{");
    for (index = 0; index < number; index++) {
        uint64_t size;
        /* In canonical maps shorter keys come first, and equal ones not at all. */
        if (!take_head(from, 3, &size) || size > USUAL_RECORD
            || (data = take(from, (size_t)size)) == NULL
            || (index > 0 && (size < before_size
                || (size == before_size && memcmp(data, before, before_size) <= 0)))) {
            return 0;
        }
        before = data;
        before_size = (size_t)size;
        if (index > 0) {
            PUT(output, ",");
        }
        if (!put_text(output, data, before_size)) {
            return 0;
        }
        PUT(output, ":");
        if (!put_item(output, from, depth - 1)) {
            return 0;
        }
    }
    PUT(output, "}");
    return 1;
}

static int put_record(Output *output, const Block *block) {
    At from = {block->data, block->data + block->size};
    return block->size > 0 && block->size <= USUAL_RECORD && block->data[0] >> 5 == 5
        && put_item(output, &from, USUAL_DEPTH) && left(&from) == 0;
}

/* Return where the usual NSID that a path begins with ends, which is at a slash, or 0. */
static size_t end_of_collection(Bytes path, size_t size) {
    size_t index, dots = 0;
    unsigned char before = '.';
    for (index = 0; index < size; index++) {
        const unsigned char c = path[index];
        if (c == '/') {
            return dots >= 2 && before != '.' && index <= USUAL_NSID ? index : 0;
        }
        if (c == '.') {
            if (before == '.') {
                return 0;
            }
            dots++;
        } else if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))) {
            return 0;
        }
        before = c;
    }
    return 0;
}

/* Those that begin with dots are left to Python. */
static int is_record_key(Bytes key, size_t size) {
    size_t index;
    if (size == 0 || size > MAX_RKEY || (key[0] == '.' && size <= 2)) {
        return 0;
    }
    for (index = 0; index < size; index++) {
        if (!is_letter(key[index])) {
            return 0;
        }
    }
    return 1;
}

/* Append the event of one operation; 0 leaves the commit to Python. */
static int put_event(Output *output, const Commit *commit, const Operation *operation,
                     const Blocks *blocks, int hashes) {
    const size_t slash = end_of_collection(operation->path, operation->path_size);
    if (slash == 0 || (operation->action == 'd') != (operation->cid == NULL)
        || !is_record_key(operation->path + slash + 1, operation->path_size - slash - 1)) {
        return 0;
    }
    switch (operation->action) {
        case 'c': PUT(output, "{\"type\":\"create\",\"seq\":"); break;
        case 'u': PUT(output, "{\"type\":\"update\",\"seq\":"); break;
        default: PUT(output, "{\"type\":\"delete\",\"seq\":");
    }
    put_number(output, (uint64_t)commit->seq, 0);
    PUT(output, ",\"time\":");
    if (!put_text(output, commit->time, commit->time_size)) {
        return 0;
    }
    PUT(output, ",\"did\":");
    if (!put_text(output, commit->did, commit->did_size)) {
        return 0;
    }
    PUT(output, ",\"commit\":\"");
    put_cid(output, commit->root);
    PUT(output, "\",\"rev\":\"");
    put(output, commit->rev, 13);
    PUT(output, "\",\"collection\":\"");
    put(output, operation->path, slash);
    PUT(output, "\",\"rkey\":\"");
    put(output, operation->path + slash + 1, operation->path_size - slash - 1);
    if (operation->cid != NULL) {
        const Block *block = find_block(blocks, operation->cid);
        if (block == NULL || (hashes && !has_its_hash(block))) {
            return 0;
        }
        PUT(output, "\",\"cid\":\"");
        put_cid(output, operation->cid);
        PUT(output, "\",\"record\":");
        if (!put_record(output, block)) {
            return 0;
        }
        PUT(output, "}");
    } else {
        PUT(output, "\"}");
    }
    return !output->failed;
}

static int add_end(Proofs *proofs) {
    if (proofs->ends_count == proofs->ends_room) {
        const size_t room = 2 * proofs->ends_room + 64;
        size_t *ends = realloc(proofs->ends, room * sizeof *ends);
        if (ends == NULL) {
            return 0;
        }
        proofs->ends = ends;
        proofs->ends_room = room;
    }
    proofs->ends[proofs->ends_count++] = proofs->events.size;
    return 1;
}

/* Write the events of the operations that are kept, which must not have more than `most` bytes. */
static int put_events(Proofs *proofs, Commit *commit, const Blocks *blocks, int hashes,
                      size_t most) {
    const size_t start = proofs->events.size;
    size_t index;
    commit->first_event = proofs->ends_count;
    for (index = 0; index < commit->operations_count; index++) {
        const Operation *operation = &commit->operations[index];
        if (operation->kept) {
            if (!put_event(&proofs->events, commit, operation, blocks, hashes)
                || proofs->events.size - start > most || !add_end(proofs)) {
                return 0;
            }
        }
    }
    commit->events_count = proofs->ends_count - commit->first_event;
    return 1;
}

/* The whole. */

static int prove_commit(Proofs *proofs, Commit *commit, Mode mode, size_t most, Output *scratch) {
    const double begin = seconds_now(), signed_before = proofs->seconds[2];
    double read;
    Blocks blocks = {NULL, 0};
    const Block *block;
    commit->signature = UNCHECKED;
    commit->commit = NULL;
    if (!read_blocks(&proofs->arena, commit, mode == CHECK_ALL, &blocks)) {
        return 0;
    }
    if (mode != CHECK_RECORDS) {
        block = find_block(&blocks, commit->root);
        if (block == NULL || (mode == CHECK_SIGNATURE && !has_its_hash(block))
            || !read_commit(&proofs->arena, commit, block, &proofs->seconds[2])) {
            return 0;
        }
    }
    if (!put_events(proofs, commit, &blocks, mode != CHECK_ALL, most)) {
        return 0;
    }
    read = seconds_now();
    proofs->seconds[0] += read - begin - (proofs->seconds[2] - signed_before);
    if (mode == CHECK_ALL) {
        const int back = leads_back(&proofs->arena, commit, &blocks, scratch);
        proofs->seconds[1] += seconds_now() - read;
        return back;
    }
    return 1;
}

/* Prove commits one after the other: `proven` is set in those that could be. */
static void prove_commits(Proofs *proofs, Commit *commits, size_t count, Mode mode, size_t most) {
    Output scratch = {NULL, 0, 0, 0};
    size_t index;
    for (index = 0; index < count; index++) {
        const size_t size = proofs->events.size, ends = proofs->ends_count;
        arena_reset(&proofs->arena);
        commits[index].proven =
            (char)prove_commit(proofs, &commits[index], mode, most, &scratch);
        if (!commits[index].proven) {
            proofs->events.size = size;
            proofs->ends_count = ends;
        }
    }
    free(scratch.start);
}

static void free_proofs(Proofs *proofs) {
    arena_free(&proofs->arena, NULL);
    free(proofs->events.start);
    free(proofs->ends);
}

static void set_letters(Bytes letters, size_t size) {
    size_t index;
    for (index = 0; index < size; index++) {
        key_letters[letters[index]] = 1;
    }
}

#endif
