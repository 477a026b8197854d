// Log lines on standard error: time, role and rank, level, text. One line a call, written with one write().
#ifndef DR_CORE_BASE_LOG_H
#define DR_CORE_BASE_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_log_level { DR_LOG_DEBUG, DR_LOG_INFO, DR_LOG_WARN, DR_LOG_ERROR } dr_log_level;

// Lines below `level` are dropped. Default: info, or what the environment's DR_LOG names (debug, info, warn,
// error).
void dr_log_set_level(dr_log_level level);

// Who speaks: shown on each line as [role rank]; role "" hides it. `role` is copied (15 characters at most).
void dr_log_set_identity(const char *role, int rank);

void dr_log(dr_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define dr_info(...) dr_log(DR_LOG_INFO, __VA_ARGS__)
#define dr_warn(...) dr_log(DR_LOG_WARN, __VA_ARGS__)
#define dr_debug(...) dr_log(DR_LOG_DEBUG, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
#endif
