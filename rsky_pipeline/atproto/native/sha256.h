/* SHA-256 (FIPS 180-4): with the processor's own instructions where x86-64 has them, else in C. */
#ifndef RSKY_SHA256_H
#define RSKY_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static const uint32_t sha256_rounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t sha256_turn(uint32_t word, int bits) {
    return (word >> bits) | (word << (32 - bits));
}

static void sha256_portable(uint32_t state[8], const unsigned char *data, size_t count) {
    uint32_t w[64], s[8], first, second;
    unsigned int i;
    for (; count > 0; count--, data += 64) {
        for (i = 0; i < 16; i++) {
            w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16
                | (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
        }
        for (; i < 64; i++) {
            first = sha256_turn(w[i - 15], 7) ^ sha256_turn(w[i - 15], 18) ^ (w[i - 15] >> 3);
            second = sha256_turn(w[i - 2], 17) ^ sha256_turn(w[i - 2], 19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16] + first + w[i - 7] + second;
        }
        memcpy(s, state, sizeof s);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 8
#endif
        for (i = 0; i < 64; i++) {
            /* The eight words move on by one: s[(k - i) & 7] is the one that the standard calls k. */
#define WORD(k) s[((k) - i) & 7]
            first = WORD(7) + sha256_rounds[i] + w[i] + ((WORD(4) & WORD(5)) ^ (~WORD(4) & WORD(6)))
                + (sha256_turn(WORD(4), 6) ^ sha256_turn(WORD(4), 11) ^ sha256_turn(WORD(4), 25));
            second = (sha256_turn(WORD(0), 2) ^ sha256_turn(WORD(0), 13) ^ sha256_turn(WORD(0), 22))
                + ((WORD(0) & WORD(1)) ^ (WORD(0) & WORD(2)) ^ (WORD(1) & WORD(2)));
            WORD(3) += first;
            WORD(7) = first + second;
#undef WORD
        }
        for (i = 0; i < 8; i++) {
            state[i] += s[i];
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

__attribute__((target("sha,sse4.1,ssse3")))
static void sha256_x86(uint32_t state[8], const unsigned char *data, size_t count) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i upper, lower, upper_before, lower_before, sum, words[4];
    int i;
    /* The instructions take the state as ABEF and CDGH. */
    sum = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)state), 0xB1);
    lower = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)(state + 4)), 0x1B);
    upper = _mm_alignr_epi8(sum, lower, 8);
    lower = _mm_blend_epi16(lower, sum, 0xF0);
    for (; count > 0; count--, data += 64) {
        upper_before = upper;
        lower_before = lower;
        for (i = 0; i < 4; i++) {
            words[i] = _mm_shuffle_epi8(
                _mm_loadu_si128((const __m128i *)(const void *)(data + 16 * i)), order
            );
        }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 16
#endif
        for (i = 0; i < 16; i++) {
            const __m128i current = words[i & 3];
            sum = _mm_add_epi32(
                current, _mm_loadu_si128((const __m128i *)(const void *)(sha256_rounds + 4 * i))
            );
            if (i < 12) { /* the words of four steps on */
                const __m128i next = words[(i + 1) & 3], last = words[(i + 3) & 3];
                const __m128i middle = _mm_alignr_epi8(last, words[(i + 2) & 3], 4);
                words[i & 3] = _mm_sha256msg2_epu32(
                    _mm_add_epi32(_mm_sha256msg1_epu32(current, next), middle), last
                );
            }
            lower = _mm_sha256rnds2_epu32(lower, upper, sum);
            upper = _mm_sha256rnds2_epu32(upper, lower, _mm_shuffle_epi32(sum, 0x0E));
        }
        upper = _mm_add_epi32(upper, upper_before);
        lower = _mm_add_epi32(lower, lower_before);
    }
    sum = _mm_shuffle_epi32(upper, 0x1B);
    lower = _mm_shuffle_epi32(lower, 0xB1);
    upper = _mm_blend_epi16(sum, lower, 0xF0);
    lower = _mm_alignr_epi8(lower, sum, 8);
    _mm_storeu_si128((__m128i *)(void *)state, upper);
    _mm_storeu_si128((__m128i *)(void *)(state + 4), lower);
}

static int sha256_has_instructions(void) {
    unsigned int a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) {
        return 0;
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}
#else
#define sha256_x86 sha256_portable
static int sha256_has_instructions(void) { return 0; }
#endif

static void (*sha256_blocks)(uint32_t *, const unsigned char *, size_t) = sha256_portable;

/* To be called once, before threads are. */
static void sha256_choose(int instructions) {
    sha256_blocks = instructions && sha256_has_instructions() ? sha256_x86 : sha256_portable;
}

static void sha256(const unsigned char *data, size_t size, unsigned char digest[32]) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char tail[128] = {0};
    const size_t whole = size / 64, rest = size % 64, padded = rest < 56 ? 64 : 128;
    const uint64_t bits = (uint64_t)size * 8;
    int i;
    sha256_blocks(state, data, whole);
    if (rest > 0) {
        memcpy(tail, data + 64 * whole, rest);
    }
    tail[rest] = 0x80;
    for (i = 0; i < 8; i++) {
        tail[padded - 1 - i] = (unsigned char)(bits >> (8 * i));
    }
    sha256_blocks(state, tail, padded / 64);
    for (i = 0; i < 32; i++) {
        digest[i] = (unsigned char)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
}

#endif
