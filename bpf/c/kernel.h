/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#ifndef HEDDLE_KERNEL_H
#define HEDDLE_KERNEL_H

/*
 * The few kernel structures and constants that the UAPI headers lack. Offsets
 * are relocated at load time (CO-RE), so only the named fields matter.
 */

#include <linux/types.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define SOL_SOCKET 1
#define SO_MARK 36

#define TCP_TIME_WAIT 6
#define TCP_NEW_SYN_RECV 12

#define NEXT -1 /* TCX_NEXT, and TC_ACT_UNSPEC for clsact: the next program decides */
#define DROP 2  /* TCX_DROP, TC_ACT_SHOT */

#define barrier() asm volatile("" ::: "memory")

#define ROOT_CGROUP 1 /* id of the cgroup2 root: the kernel's own sockets */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u32 sk_mark;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

#pragma clang attribute pop

#endif
