// What a process gives up before it serves: capabilities, the network, system calls, files
// (docs/decisions/0026). Functions return 0 or -errno. None can be undone.
#ifndef QUBLK_SANDBOX_H
#define QUBLK_SANDBOX_H

#include <stdint.h>

// MARK: While there is one thread: others inherit it

// No program that the process executes has rights that the process lacks.
int qublk_give_up_new_privileges(void);
// Keeps the capabilities of a mask of bits 1 << CAP_...; gives up all others, in every set.
int qublk_keep_capabilities(uint64_t kept);
// Lifts the limit of locked memory, which CAP_IPC_LOCK overrides until it is given up.
int qublk_lift_memory_lock_limit(void);
// Enters a network without interfaces, and a namespace of System V IPC of its own. Sockets that are open, and
// Unix sockets in the file system, stay usable.
int qublk_leave_network(void);
// Rings that are made from now on carry out only the operations that serving needs: -EINVAL or -EBADF before
// Linux 7.0.
int qublk_restrict_rings(void);
// Has threads take the signal of qublk_landlock_enter, whatever signals the caller of the program blocks.
int qublk_landlock_prepare(void);
// No core dump of the process is written, and only root can look into it.
int qublk_forbid_core_dump(void);

// MARK: For all threads that there are

// The version of Landlock's interface, 1 or more; -ENOSYS or -EOPNOTSUPP where the kernel lacks it.
int qublk_landlock_version(void);
// A set of rules that forbids all use of files by name, of TCP and of abstract Unix sockets, as far as a
// version of the interface knows them: a descriptor.
int qublk_landlock_begin(int version);
// What a rule allows.
enum {
  QUBLK_FILE_READ = 1 << 2,
  QUBLK_FILE_WRITE = 1 << 1 | 1 << 14,
  QUBLK_DEVICE_CONTROL = 1 << 15,
  QUBLK_DIRECTORY_LIST = 1 << 3,
  QUBLK_DIRECTORY_CHANGE = 1 << 5 | 1 << 8 | 1 << 9,
  QUBLK_DIRECTORY_REMOVE = 1 << 4,
  QUBLK_FILE_REMOVE = 1 << 5,
};
// Allows some use of a file, or of a directory and all below it. Rights that the version lacks need no rule.
int qublk_landlock_allow(int rules, int version, const char *path, uint64_t rights);
// Brings the rules into force for every thread of the process. The caller must be alone in starting this. A
// thread that does not take a signal within some 30 seconds makes it fail with -ETIMEDOUT.
int qublk_landlock_enter(int rules);
// Refuses all system calls that serving does not need; for all threads, and those to come. Calls by which a process
// gets at others, or at the system, end it.
int qublk_filter_calls(void);
// The signal by which a filter of calls ends a process: SIGSYS, which Swift does not see.
enum { QUBLK_BREACH_SIGNAL = 31 };

#endif
