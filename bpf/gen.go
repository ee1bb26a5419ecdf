package bpf

// The compiler is pinned, and the architecture's headers are left out, so that
// every machine generates the same bytes.

//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type address -type tuple -type service -type flow -type stamp -type pod_config -type count -type counters -type peer -type drop_peer -type tally -type datagram_rule -type block -type conversation -type last_drop -type drop_record -type drop_reason -type direction -type hook -type stamp_class -type flow_kind -type pod_flags -type port_flags -type passthru_state -type slot -type dns_slot -type served -type enrolled gate c/gate.bpf.c -- -O2 -g -Wall -Wextra -Werror -Ic/include
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -no-global-types redirect c/redirect.bpf.c -- -O2 -g -Wall -Wextra -Werror -Ic/include
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -no-global-types stamp c/stamp.bpf.c -- -O2 -g -Wall -Wextra -Werror -Ic/include
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -no-global-types enroll c/enroll.bpf.c -- -O2 -g -Wall -Wextra -Werror -Ic/include
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type digest look c/look.bpf.c -- -O2 -g -Wall -Wextra -Werror -Ic/include
