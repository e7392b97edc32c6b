// The ABI of the ublk driver, restated as facts: names, numbers and layouts as Linux 7.2 has them.
// Distributions' own headers lack most of it (Debian 12's knows no ioctl-encoded opcode).
#ifndef QUBLK_CUBLK_H
#define QUBLK_CUBLK_H

#include <stdint.h>
#include <sys/ioctl.h>

// MARK: Layouts

// One command to /dev/ublk-control; lies in the SQE from byte 48 on, so it needs a 128-byte SQE.
struct ublk_control_command {
  uint32_t dev_id;
  uint16_t queue_id;  // 0xffff where the command is not about a queue
  uint16_t len;       // bytes at addr
  uint64_t addr;
  uint64_t data;
  uint16_t dev_path_len;
  uint16_t pad;
  uint32_t reserved;
};
_Static_assert(sizeof(struct ublk_control_command) == 32, "ublk ABI");

// What a device is: in for ADD_DEV, out of it and of GET_DEV_INFO.
struct ublk_device_info {
  uint16_t nr_hw_queues;
  uint16_t queue_depth;
  uint16_t state;
  uint16_t pad0;
  uint32_t max_io_buf_bytes;
  uint32_t dev_id;
  int32_t ublksrv_pid;
  uint32_t pad1;
  uint64_t flags;
  uint64_t ublksrv_flags;
  uint32_t owner_uid;
  uint32_t owner_gid;
  uint64_t reserved1;
  uint64_t reserved2;
};
_Static_assert(sizeof(struct ublk_device_info) == 64, "ublk ABI");

// One request, written by the driver into memory that the server maps.
struct ublk_io_descriptor {
  uint32_t op_flags;  // bits 0-7: operation; the rest: UBLK_IO_F_*
  uint32_t nr_sectors;
  uint64_t start_sector;
  uint64_t addr;
};
_Static_assert(sizeof(struct ublk_io_descriptor) == 24, "ublk ABI");

// One command to /dev/ublkcN; lies in the SQE from byte 48 on.
struct ublk_io_command {
  uint16_t q_id;
  uint16_t tag;
  int32_t result;
  uint64_t addr;
};
_Static_assert(sizeof(struct ublk_io_command) == 16, "ublk ABI");

// One batch command to /dev/ublkcN; lies in the SQE from byte 48 on. For PREP and COMMIT, the entry's
// address and length are those of an array of elements.
struct ublk_batch_command {
  uint16_t q_id;
  uint16_t flags;  // UBLK_BATCH_F_*
  uint16_t nr_elem;
  uint8_t elem_bytes;
  uint8_t reserved;
  uint64_t reserved2;
};
_Static_assert(sizeof(struct ublk_batch_command) == 16, "ublk ABI");

// One tag in such an array; with UBLK_BATCH_F_HAS_BUF_ADDR the address of its buffer follows.
struct ublk_batch_element {
  uint16_t tag;
  uint16_t buf_index;  // for automatic registration
  int32_t result;      // for COMMIT
};
_Static_assert(sizeof(struct ublk_batch_element) == 8, "ublk ABI");

struct ublk_parameters_basic {
  uint32_t attrs;
  uint8_t logical_bs_shift;
  uint8_t physical_bs_shift;
  uint8_t io_opt_shift;
  uint8_t io_min_shift;
  uint32_t max_sectors;
  uint32_t chunk_sectors;
  uint64_t dev_sectors;
  uint64_t virt_boundary_mask;
};
_Static_assert(sizeof(struct ublk_parameters_basic) == 32, "ublk ABI");

struct ublk_parameters_discard {
  uint32_t discard_alignment;
  uint32_t discard_granularity;
  uint32_t max_discard_sectors;
  uint32_t max_write_zeroes_sectors;
  uint16_t max_discard_segments;
  uint16_t reserved0;
};
_Static_assert(sizeof(struct ublk_parameters_discard) == 20, "ublk ABI");

struct ublk_parameters_devt {
  uint32_t char_major, char_minor, disk_major, disk_minor;
};

struct ublk_parameters_dma {
  uint32_t alignment;  // a mask: one less than a power of two
  uint8_t pad[4];
};

struct ublk_parameters_segment {
  uint64_t seg_boundary_mask;
  uint32_t max_segment_size;
  uint16_t max_segments;
  uint8_t pad[2];
};

// As far as Linux 6.16 knows them; `len` tells the driver where the caller's version ends.
struct ublk_parameters {
  uint32_t len;
  uint32_t types;
  struct ublk_parameters_basic basic;
  struct ublk_parameters_discard discard;
  struct ublk_parameters_devt devt;
  uint8_t zoned[32];
  struct ublk_parameters_dma dma;
  struct ublk_parameters_segment segment;
};
_Static_assert(sizeof(struct ublk_parameters) == 136, "ublk ABI");
_Static_assert(__builtin_offsetof(struct ublk_parameters, dma) == 108, "ublk ABI");
_Static_assert(__builtin_offsetof(struct ublk_parameters, segment) == 120, "ublk ABI");

// MARK: Opcodes

// The struct whose size the kernel's own macros encode has the same 32 bytes.
enum {
  UBLK_NR_GET_QUEUE_AFFINITY = 0x01,
  UBLK_NR_GET_DEV_INFO = 0x02,
  UBLK_NR_ADD_DEV = 0x04,
  UBLK_NR_DEL_DEV = 0x05,
  UBLK_NR_START_DEV = 0x06,
  UBLK_NR_STOP_DEV = 0x07,
  UBLK_NR_SET_PARAMS = 0x08,
  UBLK_NR_GET_PARAMS = 0x09,
  UBLK_NR_START_USER_RECOVERY = 0x10,
  UBLK_NR_END_USER_RECOVERY = 0x11,
  UBLK_NR_GET_DEV_INFO2 = 0x12,
};

static const uint32_t UBLK_CMD_GET_QUEUE_AFFINITY = _IOR('u', 0x01, struct ublk_control_command);
static const uint32_t UBLK_CMD_GET_DEV_INFO = _IOR('u', 0x02, struct ublk_control_command);
static const uint32_t UBLK_CMD_ADD_DEV = _IOWR('u', 0x04, struct ublk_control_command);
static const uint32_t UBLK_CMD_DEL_DEV = _IOWR('u', 0x05, struct ublk_control_command);
static const uint32_t UBLK_CMD_START_DEV = _IOWR('u', 0x06, struct ublk_control_command);
static const uint32_t UBLK_CMD_STOP_DEV = _IOWR('u', 0x07, struct ublk_control_command);
static const uint32_t UBLK_CMD_SET_PARAMS = _IOWR('u', 0x08, struct ublk_control_command);
static const uint32_t UBLK_CMD_GET_PARAMS = _IOR('u', 0x09, struct ublk_control_command);
static const uint32_t UBLK_CMD_START_USER_RECOVERY = _IOWR('u', 0x10, struct ublk_control_command);
static const uint32_t UBLK_CMD_END_USER_RECOVERY = _IOWR('u', 0x11, struct ublk_control_command);
static const uint32_t UBLK_CMD_GET_DEV_INFO2 = _IOR('u', 0x12, struct ublk_control_command);
static const uint32_t UBLK_CMD_GET_FEATURES = _IOR('u', 0x13, struct ublk_control_command);
static const uint32_t UBLK_CMD_DEL_DEV_ASYNC = _IOR('u', 0x14, struct ublk_control_command);
static const uint32_t UBLK_CMD_UPDATE_SIZE = _IOWR('u', 0x15, struct ublk_control_command);
static const uint32_t UBLK_CMD_QUIESCE_DEV = _IOWR('u', 0x16, struct ublk_control_command);
static const uint32_t UBLK_CMD_TRY_STOP_DEV = _IOWR('u', 0x17, struct ublk_control_command);

static const uint32_t UBLK_IO_FETCH = _IOWR('u', 0x20, struct ublk_io_command);
static const uint32_t UBLK_IO_COMMIT_AND_FETCH = _IOWR('u', 0x21, struct ublk_io_command);
static const uint32_t UBLK_IO_PREP_BATCH = _IOWR('u', 0x25, struct ublk_batch_command);
static const uint32_t UBLK_IO_COMMIT_BATCH = _IOWR('u', 0x26, struct ublk_batch_command);
// Multishot, into provided buffers: the result is the number of bytes of tags, two for each.
static const uint32_t UBLK_IO_FETCH_BATCH = _IOWR('u', 0x27, struct ublk_batch_command);

// MARK: Features

static const uint64_t UBLK_F_SUPPORT_ZERO_COPY = 1ull << 0;
static const uint64_t UBLK_F_USER_RECOVERY = 1ull << 3;
static const uint64_t UBLK_F_USER_RECOVERY_REISSUE = 1ull << 4;
static const uint64_t UBLK_F_UNPRIVILEGED_DEV = 1ull << 5;
static const uint64_t UBLK_F_CMD_IOCTL_ENCODE = 1ull << 6;
static const uint64_t UBLK_F_USER_COPY = 1ull << 7;
static const uint64_t UBLK_F_USER_RECOVERY_FAIL_IO = 1ull << 9;
static const uint64_t UBLK_F_UPDATE_SIZE = 1ull << 10;
static const uint64_t UBLK_F_AUTO_BUF_REG = 1ull << 11;
static const uint64_t UBLK_F_QUIESCE = 1ull << 12;
static const uint64_t UBLK_F_PER_IO_DAEMON = 1ull << 13;
static const uint64_t UBLK_F_BATCH_IO = 1ull << 15;
static const uint64_t UBLK_F_SAFE_STOP_DEV = 1ull << 17;
static const uint64_t UBLK_F_NO_AUTO_PART_SCAN = 1ull << 18;

// MARK: Parameter types and attributes

enum {
  UBLK_PARAM_TYPE_BASIC = 1 << 0,
  UBLK_PARAM_TYPE_DISCARD = 1 << 1,
  UBLK_PARAM_TYPE_DEVT = 1 << 2,
  UBLK_PARAM_TYPE_DMA_ALIGN = 1 << 4,
  UBLK_PARAM_TYPE_SEGMENT = 1 << 5,

  UBLK_ATTR_READ_ONLY = 1 << 0,
  UBLK_ATTR_ROTATIONAL = 1 << 1,
  UBLK_ATTR_VOLATILE_CACHE = 1 << 2,
  UBLK_ATTR_FUA = 1 << 3,
};

// MARK: I/O

enum {
  UBLK_IO_OP_READ = 0,
  UBLK_IO_OP_WRITE = 1,
  UBLK_IO_OP_FLUSH = 2,
  UBLK_IO_OP_DISCARD = 3,
  UBLK_IO_OP_WRITE_ZEROES = 5,

  UBLK_IO_F_FUA = 1 << 13,
  UBLK_IO_F_NOUNMAP = 1 << 15,
  UBLK_IO_F_NEED_REG_BUF = 1 << 17,

  UBLK_AUTO_BUF_REG_FALLBACK = 1 << 0,

  UBLK_BATCH_F_HAS_BUF_ADDR = 1 << 1,
  UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK = 1 << 2,

  UBLK_MAX_QUEUE_DEPTH = 4096,
  UBLK_MAX_QUEUES = 4096,
};

// Where the request's own bytes are found in /dev/ublkcN for user copy.
static const uint64_t UBLK_IO_BUFFER_OFFSET = 0x80000000;
enum { UBLK_IO_BUFFER_BITS = 25, UBLK_TAG_BITS = 16 };

enum { UBLK_STATE_DEAD = 0, UBLK_STATE_LIVE = 1, UBLK_STATE_QUIESCED = 2, UBLK_STATE_FAIL_IO = 3 };

#endif
