// What the daemon and the commands need of Linux and Swift cannot import: fork, prctl, locks of open
// file descriptions, mount namespaces, signalfd, Unix sockets, and the macros behind device numbers.
// Each returns what its system call returns: negative with errno set on failure.
#ifndef QUBLK_PROCESS_H
#define QUBLK_PROCESS_H

#include <stddef.h>
#include <stdint.h>

// The words of the command line as main got them: the C library hands them to constructors, too. (Swift's
// CommandLine reads /proc/self/cmdline, and has none where /proc is not mounted.) NULL beyond the count.
int qublk_argument_count(void);
const char *qublk_argument(int index);

// What every command does first: SIGXFSZ is ignored, so that a write beyond `ulimit -f` fails with EFBIG
// and ends nothing; the stack may grow to 8 MiB, where the system allows it; the limit of descriptors is
// the hard one; closed standard streams are opened.
void qublk_process_prepare(void);
// Whether `count` more descriptors, 256 at most, can be opened now: 0, or -1 with errno.
int qublk_process_spare_descriptors(int count);
// The limits of descriptors, and of bytes of address space and of writable memory; UINT64_MAX for none.
uint64_t qublk_process_descriptor_limit(void);
uint64_t qublk_process_address_limit(void);
uint64_t qublk_process_data_limit(void);
// Takes away the limit of processor time, at which the system would end the process.
int qublk_process_lift_time_limit(void);

// fork(2). The caller must have one thread only.
int qublk_process_fork(void);
// pipe2(fds, O_CLOEXEC).
int qublk_pipe_cloexec(int fds[2]);
// Has a child keep nothing of its parent's descriptors but `kept`: standard streams are /dev/null, all others
// are closed. The kernel ends the child with the thread that made it. Returns the new number of `kept`.
int qublk_process_detach_child(int kept);

// Leaves the caller's mount namespace for a private copy of it.
int qublk_process_private_mounts(void);
// umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW).
int qublk_detach_mount(const char *path);

// Blocks SIGTERM, SIGINT and SIGHUP for this thread and those it starts, ignores SIGPIPE, and
// returns a descriptor from which the three are read, or -1.
int qublk_signals_open(void);
// The next pending signal of a descriptor from qublk_signals_open, or 0 if there is none. It is
// negative if process 1 sent it, or if the parent passed on a signal of process 1.
int qublk_signals_next(int fd);
// The same for a parent that does nothing else: SIGCHLD beside the three.
int qublk_parent_signals_open(void);
// Sends the signal to a process; with from_init as one of process 1, see qublk_signals_next.
int qublk_signal_pass(int pid, int signal, int from_init);
// Ends the calling process by the signal, without a core dump.
void qublk_end_by_signal(int signal);

// Locks (shared, without waiting) or unlocks one byte for the open file description of fd.
int qublk_ofd_share_byte(int fd, int64_t offset);
int qublk_ofd_unlock_byte(int fd, int64_t offset);
// Whether another open file description has any lock on the byte: 1 or 0, or -1 with errno.
int qublk_ofd_byte_is_locked(int fd, int64_t offset);
// flock(fd, LOCK_NB | (exclusive ? LOCK_EX : LOCK_SH)).
int qublk_flock(int fd, int exclusive);
// Opens path, creating it if creating is not 0: O_CLOEXEC is added to flags, the mode is 0600.
int qublk_open_file(const char *path, int flags, int creating);

// Whether the page at offset is in the page cache: 1 or 0, or -1 with errno. Reads nothing.
int qublk_is_cached(int fd, uint64_t offset);

// A stream socket listening at path (0600), and one connected to it; both close on exec. Connecting fails
// with EAGAIN where it would wait, since nobody accepts.
int qublk_unix_listen(const char *path);
int qublk_unix_connect(const char *path);
// The next connection of a listening socket, close on exec and without waiting in transfers.
int qublk_unix_accept(int fd);
// The process that listens (or connected) at the other side of a connection, -1 if it cannot be told.
int qublk_unix_peer(int fd);

// The serial number of the key of type "user" with this description, from the keyrings of the process
// or, failing that, the user's own; -errno if there is none. Creates nothing, asks nobody.
int qublk_key_find(const char *description);
// Copies at most size bytes of the key's payload; returns the payload's whole length or -errno.
long qublk_key_read(int key, void *buffer, size_t size);

// A connected pair of sockets that keep messages apart (SOCK_SEQPACKET), close on exec.
int qublk_message_pair(int fds[2]);
// Sends one message of at least one byte, with copies of `count` descriptors, 253 at most.
int qublk_message_send(int fd, const void *bytes, size_t size, const int *fds, int count);
// Receives one message without waiting. *count: in, the room for descriptors, 253 at most; out, how many came.
// 0 if the other side is gone, -1 with errno (EAGAIN: no message).
long qublk_message_receive(int fd, void *bytes, size_t size, int *fds, int *count);
// A copy of the descriptor that closes on exec.
int qublk_duplicate(int fd);

// Has the kernel write back all that it has cached for the block device at a path, and the file system on it.
int qublk_write_block_device_back(const char *path);

// A datagram socket that is connected to systemd's service manager, whose address NOTIFY_SOCKET has; or -errno.
int qublk_notify_connect(const char *socket);

// pidfd_open(2).
int qublk_pidfd_open(int pid);
// Whether a wait(2) status is that of a process ended by a signal, and which; and the exit status.
int qublk_wait_signal(int status);
int qublk_wait_exit(int status);

// The device number of the block device at a path; 0 if there is no block device there. Asks no server of a
// network file system, which might not answer.
uint64_t qublk_block_device_at(const char *path);
uint32_t qublk_device_major(uint64_t device);
uint32_t qublk_device_minor(uint64_t device);

// The constant name of an error number ("ENOENT") and its text in English; NULL if unknown.
const char *qublk_errno_name(int code);
const char *qublk_errno_text(int code);
// The name of a signal without "SIG", or NULL.
const char *qublk_signal_name(int signal);

#endif
