// Package operator is the control plane, importable: New(Config), then
// Run(ctx). It reads the mesh's objects from a folder of YAML or from a
// Kubernetes API server, streams what they mean to the agents, and signs their
// certificates. It carries no traffic, and a mesh goes on without it.
//
// # On Kubernetes
//
// Every replica mirrors the cluster (package cluster), compiles and streams
// (publish), has tokens reviewed (tokenreview) and signs (issuing) with the keys
// of one Secret (keys). One of them leads (leader): it writes statuses and
// events (report), and publishes the roots. The packages' documentation says
// which rights each needs; docs/operator.md has them in one table, with
// ports and flags.
//
// # In a folder
//
// Everything is level-triggered: a change in the folder, however it is made,
// makes the operator read all of it again. A folder with a problem in it is
// refused as a whole, and the last good configuration goes on, also across a
// restart; the operator's status names file and field.
//
// # State directory
//
//	lock         held while an operator runs
//	state.json   trust domain, and the epoch and revision published last
//	last-good    the whole configuration published last, signed
//	ca/          the signing root and the configuration key
//	tokens/      records of join tokens, without their secrets
//
// Directories are 0700 and files 0600, except for certificates. Run refuses a
// directory that lets others in. To back an operator up, copy the directory; to
// begin anew, delete it and join every node again.
//
// An Operator's methods may be called from any goroutine; Run is called once,
// and ends everything that it starts.
package operator
