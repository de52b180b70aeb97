/* What memory gives to threads that only read: each sums a part of its own, eight words of 64 bits at a time. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  const uint64_t *begin;
  size_t count;
  uint64_t sum;
} Part;

static void *sum_part(void *given) {
  Part *part = given;
  uint64_t sums[8] = {0};
  for (size_t i = 0; i + 8 <= part->count; i += 8)
    for (int lane = 0; lane < 8; lane++) sums[lane] += part->begin[i + lane];
  for (int lane = 0; lane < 8; lane++) part->sum += sums[lane];
  return NULL;
}

/* The sum of `count` words, which the caller may check; 0 where threads cannot be made. */
uint64_t read_all(const uint64_t *words, size_t count, int threads) {
  Part *parts = calloc(threads, sizeof *parts);
  pthread_t *running = calloc(threads, sizeof *running);
  uint64_t sum = 0;
  int begun = 0;
  if (parts && running)
    for (; begun < threads; begun++) {
      size_t first = count / threads * begun;
      parts[begun] = (Part){words + first, count / threads, 0};
      if (pthread_create(&running[begun], NULL, sum_part, &parts[begun])) break;
    }
  for (int i = 0; i < begun; i++) {
    pthread_join(running[i], NULL);
    sum += parts[i].sum;
  }
  free(parts);
  free(running);
  return begun == threads ? sum : 0;
}
