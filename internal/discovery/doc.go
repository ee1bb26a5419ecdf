// Package discovery carries the mesh's configuration from the operator to the
// agents: delta xDS (envoy/service/discovery/v3, one aggregated stream per
// agent) with Heddle's own resource types, and the last good copy that an agent
// keeps on disk and starts from while the operator is away.
//
// It decides nothing about connections and reads no Kubernetes objects: it
// turns a mesh.View into resources, and resources into a mesh.View again.
//
// # The stream
//
// The agent subscribes to everything ("*") of each type, Commit last. The
// server answers with the resources that differ from those the agent says it
// holds, in messages below 1 MiB, and ends each round with a Commit resource:
// revision, epoch, the hash of the agent's whole set, and a signature by the
// operator's configuration key. An agent stages what arrives, checks it against
// the commit and applies all of it or nothing. It acknowledges every message;
// the acknowledgement of a Commit means applied. One round is in flight at a
// time; what changes meanwhile is coalesced into the next.
//
// Versions are hashes of names and contents, so they are equal on every replica
// of the operator, and an agent that reconnects with nothing changed receives
// an empty Commit response and no resource. Epochs only grow: an agent refuses
// one older than what it has applied, and the operator persists its own.
//
// A node is told how to reach every workload and service, since any pod may dial
// any of them: addresses, identity, node and zone, whether it is enrolled and
// ready. What is enforced where a workload runs (labels, modes, probe ports, UID,
// network namespace, the policies that select it) only its own node is told: the
// agent of the destination enforces policy, also for connections that stay on
// the node. Of NetworkPolicies it is told those that select enrolled workloads of
// its own, in either direction, and the sets of addresses that these refer to, in
// shards.
//
// An agent subscribes to every kind of resource that it knows, and is told of no
// other; the hash that is committed is over what it is told. An operator that
// refuses a kind is of the version before: it is asked again for the older ones.
//
// # What it costs
//
// What all nodes are told is one value, a resources.Shared, with one hash tree;
// a node's set is that and a short list of its own. The next Snapshot, and a node's
// next set, share with those before what did not change, and the hashes of it. So a
// change costs the server what changed, and for each node the root of a tree, a
// signature and two small messages; and it knows what a node holds by a reference, not
// by a list. What is shared is encoded once for all nodes that join: its messages go
// out first, the node's own take the place of the same names in them. An agent keeps
// what it holds by the leaves of the same tree, and changes its View instead of making
// another. docs/scale.md has measures.
//
// # Concurrency
//
// Server and Client are safe for concurrent use. Of many agents that come at
// once, a bounded number is sent whole sets at a time; the others are connected
// and wait. A Snapshot is immutable.
// Client.Run and the server's streams end every goroutine they start before
// they return; Server.Drain ends the streams.
package discovery
