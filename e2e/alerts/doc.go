// Package alerts has promtool, Prometheus' own tool, judge the alerts that Heddle ships
// (manifests/heddle/rules) by what agents and operators of a running mesh serve. It
// holds tests only. Root is needed.
package alerts
