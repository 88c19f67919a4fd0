/* Part of every compiled module: what it was built of, see `digest_of` in __init__.py. */
extern const char rsky_sources[];
#if defined(__GNUC__)
__attribute__((used))
#endif
const char rsky_sources[] = "rsky-sources:" SOURCES_DIGEST;
