// Status codes and the error law of the house: fallible functions return dr_status and write their outputs
// only on success; the first function that decides which error it is logs it once (DR_FAIL), the others
// pass it on (DR_TRY). Nothing here ends the process except a broken assertion, which is our bug.
#ifndef DR_CORE_BASE_STATUS_H
#define DR_CORE_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_status {
    DR_OK = 0,
    DR_ERR_ARGUMENT,    // a caller or a user asked for something impossible
    DR_ERR_IO,          // the system refused a read, a write, a rename
    DR_ERR_FORMAT,      // bytes that do not follow their format
    DR_ERR_RANGE,       // an index or a size outside its bounds
    DR_ERR_MEMORY,      // an allocation failed
    DR_ERR_UNSUPPORTED, // well formed, but this program does not do it
    DR_ERR_TIMEOUT,     // a wait passed its deadline
    DR_ERR_PEER,        // another rank failed or sent nonsense
    DR_ERR_NUMERIC,     // NaN or infinity where a number must be
    DR_ERR_INTERRUPTED, // a signal asked for an orderly end
    DR_ERR_INTERNAL     // our bug, noticed before harm
} dr_status;

// Records and logs an error (level error: file, line, text), returns `status`. printf format.
dr_status dr_fail(dr_status status, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

// Text of the last error recorded on this thread ("" if none); valid until the next one.
const char *dr_last_error(void);

// Short name of a status ("format error", …); static storage.
const char *dr_status_name(dr_status status);

// Logs a broken assertion and aborts: only for our own bugs, never for input.
void dr_assert_failed(const char *expression, const char *file, int line) __attribute__((noreturn));

#define DR_FAIL(status, ...) dr_fail((status), __FILE__, __LINE__, __VA_ARGS__)

#define DR_TRY(call)                                                                                         \
    do {                                                                                                     \
        dr_status dr_try_status_ = (call);                                                                   \
        if (dr_try_status_ != DR_OK) return dr_try_status_;                                                  \
    } while (0)

// `status` is the caller's dr_status variable; jumps to `label` when the call fails.
#define DR_TRY_GOTO(status, call, label)                                                                     \
    do {                                                                                                     \
        (status) = (call);                                                                                   \
        if ((status) != DR_OK) goto label;                                                                   \
    } while (0)

// Input and file checks, always on.
#define DR_CHECK(condition, code, ...)                                                                       \
    do {                                                                                                     \
        if (!(condition)) return DR_FAIL((code), __VA_ARGS__);                                               \
    } while (0)

#define DR_CHECK_GOTO(condition, status, code, label, ...)                                                   \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            (status) = DR_FAIL((code), __VA_ARGS__);                                                         \
            goto label;                                                                                      \
        }                                                                                                    \
    } while (0)

// Our own bugs; never wraps a side effect.
#define DR_ASSERT(expression) ((expression) ? (void)0 : dr_assert_failed(#expression, __FILE__, __LINE__))

#ifdef __cplusplus
}
#endif
#endif
