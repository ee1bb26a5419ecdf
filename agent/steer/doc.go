// Package steer finds a pod's way out and keeps the rules and routes that lead
// the pod's TCP, and its DNS queries, to the agent's listeners: package podnet's doc shows them. It
// works on netlink handles and holds no state.
package steer
