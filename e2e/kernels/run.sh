#!/bin/bash
# Runs the kernel's part of Heddle on Debian's 6.1 and 6.12 kernels, in virtual
# machines without KVM, and prints how many tests passed on each.
#
#   e2e/kernels/run.sh [-j] [package-dir ...]   default: ./bpf, and ./agent/podnet when it is there
#
# -j boots both kernels at once. Installs what is missing by apt. Kernels are
# unpacked under .cache/kernels once. Exit status 0 only if every test binary
# of every kernel passed; emulated processors miss deadlines now and then, so up
# to two tests of a binary are run once more, and named.
#
# From the environment: ARCH (amd64, or arm64), KERNELS ("6.1 6.12"), LIMIT (seconds
# per kernel, 1200), RUN (a -test.run pattern).
set -euo pipefail
cd "$(dirname "$0")/../.."
KERNELS=${KERNELS:-6.1 6.12}
LIMIT=${LIMIT:-1200}
RUN=${RUN:-.}
ARCH=${ARCH:-amd64}
CACHE=$PWD/.cache/kernels
APT=() # options of all apt commands that look for kernels
case $ARCH in
amd64)
	QEMU=(qemu-system-x86_64 -cpu max) QEMU_PACKAGE=qemu-system-x86
	CONSOLE=ttyS0
	;;
arm64) # pointers that are authenticated as Arm says would be most of what is emulated
	QEMU=(qemu-system-aarch64 -machine virt -cpu "max,pauth-impdef=on") QEMU_PACKAGE=qemu-system-arm
	CONSOLE=ttyAMA0
	CACHE=$CACHE/arm64
	;;
*) echo "ARCH=$ARCH: use amd64 or arm64" >&2; exit 2 ;;
esac
PARALLEL=
if [ "${1:-}" = -j ]; then PARALLEL=1; shift; fi
PACKAGES=("$@")
if [ ${#PACKAGES[@]} = 0 ]; then
	PACKAGES=(./bpf)
	if compgen -G 'agent/podnet/*_test.go' >/dev/null; then PACKAGES+=(./agent/podnet); fi
fi

# What the tests need that Debian builds as modules, in the order of loading.
MODULES="inet_diag tcp_diag llc stp bridge veth dummy sch_ingress cls_bpf act_bpf libcrc32c nf_tproxy_ipv4 nf_tproxy_ipv6 tcp_bbr nfnetlink nf_tables"

# Tests of how long a program takes, which emulation says nothing of.
TIMED='^(TestGateCost|TestLookCost)$'

# Programs that tests run and of which busybox's form knows too little.
TOOLS="ip tc nft"

install_tools() {
	local missing=()
	command -v "${QEMU[0]}" >/dev/null || missing+=("$QEMU_PACKAGE")
	command -v cpio >/dev/null || missing+=(cpio)
	command -v xz >/dev/null || missing+=(xz-utils)
	PATH=$PATH:/usr/sbin:/sbin command -v ip >/dev/null || missing+=(iproute2)
	PATH=$PATH:/usr/sbin:/sbin command -v nft >/dev/null || missing+=(nftables)
	[ -x /bin/busybox ] || missing+=(busybox-static)
	if [ ${#missing[@]} -gt 0 ]; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	fi
}

# foreign_apt makes the packages of an architecture that is not this machine's known to
# apt: in lists of its own, and as if nothing were installed, so that what a package
# depends on is downloaded, too. This machine's apt is none the wiser.
foreign_apt() {
	local apt=$CACHE/apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	: >"$apt/status"
	APT=(-o "APT::Architecture=$ARCH" -o "APT::Architectures=$ARCH" -o "Dir::State::Lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache")
}

# newest 6.12: the name of the newest package of that kernel that apt knows.
newest() {
	apt-cache "${APT[@]}" search --names-only "^linux-image-${1//./\\.}[.+].*-cloud-$ARCH-unsigned\$" | awk '{print $1}' | sort -V | tail -1
}

# add_backports makes the backports of this release known to apt, at the mirror
# that its sources have already. Only for this run: in lists of its own.
add_backports() {
	local codename mirror
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk -v c="$codename" '$2 == c {print $1; exit}')
	mkdir -p "$CACHE/apt/lists/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $codename-backports main" >"$CACHE/apt/backports.list"
	APT+=(-o "Dir::Etc::SourceList=$CACHE/apt/backports.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$CACHE/apt/lists")
	apt-get "${APT[@]}" update -qq
}

# unpack 6.12: the folder of the unpacked kernel, downloading it when missing.
unpack() {
	local version=$1 dir=$CACHE/$1 package
	if [ ! -e "$dir/done" ]; then
		package=$(newest "$version")
		if [ -z "$package" ]; then apt-get "${APT[@]}" update -qq; package=$(newest "$version"); fi
		if [ -z "$package" ]; then
			add_backports
			package=$(newest "$version")
		fi
		[ -n "$package" ] || { echo "apt knows no cloud kernel $version" >&2; return 1; }
		rm -rf "$dir"; mkdir -p "$dir/tree"
		(cd "$dir" && apt-get "${APT[@]}" download -qq "$package" 2>/dev/null && dpkg-deb -x ./*.deb tree && rm ./*.deb && echo "$package" >done) >&2
	fi
	echo "$dir"
}

# build: the test binaries, static, in .cache/kernels/tests.
build() {
	rm -rf "$CACHE/tests"; mkdir -p "$CACHE/tests"
	local dir
	for dir in "${PACKAGES[@]}"; do
		GOARCH=$ARCH CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$CACHE/tests/$(basename "$dir").test" "$dir"
	done
}

# add_tool ROOT NAME: a program of this machine, with the libraries it names.
add_tool() {
	local path
	path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$2")
	cp -L "$path" "$1/tools/"
	ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
		mkdir -p "$1$(dirname "$library")"
		cp -Ln "$library" "$1$library"
	done
}

# userland ROOT: busybox and the tools, of this machine, or of Debian's packages where they
# are of another architecture.
userland() {
	local tool package packages=$CACHE/userland
	if [ "$ARCH" = "$(dpkg --print-architecture)" ]; then
		cp /bin/busybox "$1/bin/"
		for tool in $TOOLS; do add_tool "$1" "$tool"; done
		return
	fi
	if [ ! -e "$packages/done" ]; then
		rm -rf "$packages"; mkdir -p "$packages"
		apt-get "${APT[@]}" update -qq
		apt-get "${APT[@]}" install -qq -y --download-only --no-install-recommends busybox-static iproute2 nftables >&2
		for package in "$CACHE"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$packages"; done
		touch "$packages/done"
	fi
	cp "$packages/bin/busybox" "$1/bin/"
	for tool in $TOOLS; do cp "$(find "$packages"/{,usr/}{bin,sbin} -name "$tool" -type f)" "$1/tools/"; done
	mkdir -p "$1/usr"
	cp -r "$packages/lib" "$1/"
	cp -r "$packages/usr/lib" "$1/usr/"
}

# initramfs DIR: busybox, modules, tests and an init that runs them.
initramfs() {
	local root=$1/root module file
	rm -rf "$root"
	mkdir -p "$root"/{bin,tools,proc,sys,dev,tmp,run,modules,tests}
	userland "$root"
	cp "$CACHE"/tests/*.test "$root/tests/"
	cp -r docs "$root/docs" # tests run in /tmp, and hold pages to what the kernel does
	for module in $MODULES; do
		file=$(find "$1/tree" -name "$module.ko*" | head -1)
		case $file in
		*.xz) xz -dc "$file" >"$root/modules/$module.ko" ;;
		*.zst) zstd -dcq "$file" >"$root/modules/$module.ko" ;;
		?*) cp "$file" "$root/modules/" ;;
		esac
	done
	cat >"$root/init" <<-INIT
		#!/bin/busybox sh
		/bin/busybox --install -s /bin
		export PATH=/tools:/bin HOME=/ TMPDIR=/tmp
		mount -t proc proc /proc
		mount -t sysfs sys /sys
		mount -t devtmpfs dev /dev
		mount -t tmpfs tmp /tmp
		mount -t tmpfs run /run
		mount -t cgroup2 cg /sys/fs/cgroup
		mkdir -p /run/netns /tmp/testdata
		for m in $MODULES; do [ -f /modules/\$m.ko ] && insmod /modules/\$m.ko; done
		ip link set lo up
		echo "KERNEL \$(uname -r)"
		cd /tmp
		for t in /tests/*.test; do
			echo "BINARY \$(basename \$t)"
			{ \$t -test.v -test.timeout ${LIMIT}s -test.run '$RUN' -test.skip '$TIMED'; echo \$? >/tmp/status; } 2>&1 | tee /tmp/output
			failed=\$(sed -n 's/^--- FAIL: \(Test[A-Za-z0-9_]*\).*/\1/p' /tmp/output)
			if [ -n "\$failed" ] && [ "\$(echo "\$failed" | wc -l)" -le 2 ]; then
				echo "AGAIN" \$failed
				\$t -test.v -test.timeout ${LIMIT}s -test.run "^(\$(echo \$failed | tr ' ' '|'))\$"
				echo \$? >/tmp/status
			fi
			echo "STATUS \$(basename \$t) \$(cat /tmp/status)"
		done
		poweroff -f
	INIT
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$1/initramfs.gz"
	rm -rf "$root"
}

# boot 6.12: runs the tests there; the console goes to .cache/kernels/6.12/log. The
# kernel's check of the timer fails, and panics, when emulation is slow for a moment.
boot() {
	local dir=$CACHE/$1
	timeout "$((LIMIT + 30))" "${QEMU[@]}" -accel tcg,thread=multi -m 1536 -smp 2 \
		-nographic -no-reboot -nodefaults -serial stdio -kernel "$dir"/tree/boot/vmlinuz-* -initrd "$dir/initramfs.gz" \
		-append "console=$CONSOLE quiet panic=-1 mitigations=off no_timer_check" </dev/null >"$dir/log" 2>&1 || true
	sed -i 's/\r$//' "$dir/log"
}

# report 6.12: one line of counts; false when anything failed, also when it was run
# once more, or did not end.
report() {
	local log=$CACHE/$1/log status=0 passed failed skipped again
	# The console may put a kernel message in front of a test's line.
	passed=$(grep -c -e '--- PASS' "$log" || true)
	failed=$(grep -c -e '--- FAIL' "$log" || true)
	skipped=$(grep -c -e '--- SKIP' "$log" || true)
	[ "$(grep -c '^STATUS .* 0$' "$log" || true)" = "${#PACKAGES[@]}" ] || status=1
	again=$(sed -n 's/.*AGAIN //p' "$log")
	[ "$failed" = 0 ] || [ -n "$again" ] || status=1
	[ "$passed" -gt 0 ] || status=1
	printf '%-6s %-28s %3d passed %3d failed %3d skipped\n' "$1" "$(sed -n 's/.*KERNEL //p' "$log")" "$passed" "$failed" "$skipped"
	if [ -n "$again" ]; then echo "run once more:" $again; fi
	if [ $status != 0 ]; then
		grep -v -e '--- PASS' -e '=== RUN' "$log" | tail -60
		echo "the whole console: $log"
	fi
	return $status
}

install_tools
if [ "$ARCH" != "$(dpkg --print-architecture)" ]; then foreign_apt; fi
build
for k in $KERNELS; do dir=$(unpack "$k"); initramfs "$dir"; done
started=$SECONDS
for k in $KERNELS; do
	if [ -n "$PARALLEL" ]; then boot "$k" & else boot "$k"; fi
done
wait
status=0
for k in $KERNELS; do report "$k" || status=1; done
echo "kernels: $((SECONDS - started)) s"
exit $status
