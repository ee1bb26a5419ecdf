// Package handover moves a running agent's work to a new process on the same
// machine: its listeners, its live connections and what goes with them, as
// descriptors and bytes over a private unix socket (SCM_RIGHTS, unix(7)). It is
// the protocol: who speaks when, which version, and who owns a connection at
// each moment. It does not know what a connection's state means, how pods are
// enrolled or what carries them: both agents hand that in.
//
// The one that runs is the donor, the new one the successor.
//
//	successor                          donor
//	hello (versions, node, mesh, layout) →
//	                                ←  welcome, or refused with a remedy
//	                                   holds its pods as they are, and goes on
//	                                ←  listeners, by pod; records (2); standby
//	tests itself
//	ready, or failed                →
//	                                ←  moving
//	accepts beside the donor
//	accepting                       →
//	                                   stops accepting
//	                                ←  batch (at rest in the donor)
//	prepared (nothing touched)      →
//	                                ←  commit: theirs from here on; or abort
//	goes on with them, …            …
//	                                ←  records (2); done
//	answers for the node
//	taken                           →  ends
//
// A connection is the donor's until the commit is in the successor's socket: a
// send to a unix socket has either put all of it there or nothing. The donor
// does not touch it after that, the successor not before. A donor that hears
// nothing in time says abort and goes on with it, and ignores what comes late; a
// successor that loses its donor before a commit closes its duplicates. So two
// processes never seal with the same keys, whatever breaks.
//
// Messages hold keys: they are written to nothing but the socket.
package handover
