/* A stand-in for libmooncake_store.so with the interface of store_c.h: write-once objects in this process's memory.
 *
 * The device name given at the set-up is a path: while a file is there, no call ends, and none touches a buffer. What is
 * called is written behind it, with ".calls" at its end, one line a call.
 * A master address of "nowhere" cannot be reached. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct object { char *key; unsigned char *bytes; size_t size; struct object *next; };
struct store { char hang[512]; int calls; };

static struct object *buckets[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum { NOT_FOUND = -704, INVALID = -600, NO_SPACE = -200 };

static struct object **find(const char *key) {
    uint64_t h = 1469598103934665603u;
    for (const char *c = key; *c; c++) h = (h ^ (unsigned char)*c) * 1099511628211u;
    struct object **at = &buckets[h % 4096];
    while (*at && strcmp((*at)->key, key)) at = &(*at)->next;
    return at;
}

static void wait_while_hung(struct store *s) {
    while (s->hang[0] && access(s->hang, F_OK) == 0) usleep(500);
}

static void say(struct store *s, const char *call, size_t n) {
    char line[64];
    int len = snprintf(line, sizeof line, "%s %zu\n", call, n);
    if (s->calls > 0 && write(s->calls, line, (size_t)len) != len) abort();
}

void *mooncake_store_create(void) { return calloc(1, sizeof(struct store)); }
void mooncake_store_destroy(void *s) {
    if (((struct store *)s)->calls > 0) close(((struct store *)s)->calls);
    free(s);
}

int mooncake_store_setup(void *s, const char *host, const char *metadata, uint64_t segment, uint64_t buffer,
                         const char *protocol, const char *device, const char *master) {
    (void)segment; (void)buffer;
    if (!*host || !*metadata || !*protocol) return INVALID;
    if (!strcmp(master, "nowhere:1")) return -900;
    struct store *store = s;
    strncpy(store->hang, device, 511);
    if (*device) {
        char path[600];
        snprintf(path, sizeof path, "%s.calls", device);
        store->calls = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    }
    return 0;
}

int mooncake_store_init_all(void *s, const char *p, const char *d, uint64_t n) { (void)s; (void)p; (void)d; (void)n; return -1; }
int mooncake_store_health_check(void *s) { (void)s; return 0; }
int mooncake_store_get_hostname(void *s, char *out, size_t len) { (void)s; strncpy(out, "stub:1", len); return 0; }

int mooncake_store_register_buffer(void *s, void *at, size_t n) { (void)at; say(s, "register", n); return 0; }
int mooncake_store_unregister_buffer(void *s, void *at) { (void)at; say(s, "unregister", 0); return 0; }

static int put(struct store *s, const char *key, const void *from, size_t size) {
    wait_while_hung(s);
    if (!*key || !size) return INVALID;
    pthread_mutex_lock(&lock);
    struct object **at = find(key);
    if (!*at) {
        struct object *o = calloc(1, sizeof *o);
        o->key = strdup(key);
        o->bytes = malloc(size);
        o->size = size;
        memcpy(o->bytes, from, size);
        *at = o;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

static int64_t get(struct store *s, const char *key, void *to, size_t room) {
    wait_while_hung(s);
    pthread_mutex_lock(&lock);
    struct object *o = *find(key);
    int64_t answer = o ? (o->size > room ? INVALID : (int64_t)o->size) : NOT_FOUND;
    if (answer > 0) memcpy(to, o->bytes, o->size);
    pthread_mutex_unlock(&lock);
    return answer;
}

int mooncake_store_put(void *s, const char *k, const void *v, size_t n, const void *c) { (void)c; return put(s, k, v, n); }
int mooncake_store_put_from(void *s, const char *k, void *v, size_t n, const void *c) { (void)c; return put(s, k, v, n); }
int64_t mooncake_store_get_into(void *s, const char *k, void *v, size_t n) { return get(s, k, v, n); }

int mooncake_store_batch_put_from(void *s, const char **keys, void **from, const size_t *sizes, size_t n, const void *c,
                                  int *out) {
    (void)c;
    say(s, "put", n);
    for (size_t i = 0; i < n; i++) out[i] = put(s, keys[i], from[i], sizes[i]);
    return 0;
}

int mooncake_store_batch_get_into(void *s, const char **keys, void **to, const size_t *sizes, size_t n, int64_t *out) {
    say(s, "get", n);
    for (size_t i = 0; i < n; i++) out[i] = get(s, keys[i], to[i], sizes[i]);
    return 0;
}

int mooncake_store_is_exist(void *s, const char *key) {
    wait_while_hung(s);
    pthread_mutex_lock(&lock);
    int there = *find(key) != NULL;
    pthread_mutex_unlock(&lock);
    return there;
}

int mooncake_store_batch_is_exist(void *s, const char **keys, size_t n, int *out) {
    for (size_t i = 0; i < n; i++) out[i] = mooncake_store_is_exist(s, keys[i]);
    return 0;
}

int64_t mooncake_store_get_size(void *s, const char *key) {
    wait_while_hung(s);
    pthread_mutex_lock(&lock);
    struct object *o = *find(key);
    int64_t size = o ? (int64_t)o->size : NOT_FOUND;
    pthread_mutex_unlock(&lock);
    return size;
}

int mooncake_store_remove(void *s, const char *key, int force) {
    (void)force;
    wait_while_hung(s);
    pthread_mutex_lock(&lock);
    struct object **at = find(key), *o = *at;
    if (o) *at = o->next;
    pthread_mutex_unlock(&lock);
    if (!o) return NOT_FOUND;
    free(o->key);
    free(o->bytes);
    free(o);
    return 0;
}

int64_t mooncake_store_remove_by_regex(void *s, const char *p, int f) { (void)s; (void)p; (void)f; return -1; }
int64_t mooncake_store_remove_all(void *s, int f) { (void)s; (void)f; return -1; }
int mooncake_store_calc_cache_stats(void *s, char *o, size_t n) { (void)s; (void)o; (void)n; return -1; }
int mooncake_store_get_client_stats(void *s, char *o, size_t n) { (void)s; (void)o; (void)n; return -1; }
