// Package manifests has what Heddle is on Kubernetes, as one Helm chart: the
// folder heddle. It decides nothing and renders nothing. The files in plain, and
// kustomization.yaml, are what the chart says with its own values, written by
// `make generate`; change the chart, not them.
package manifests

import "embed"

//go:generate go run ../cmd/heddle/internal/chart/plain .

// Chart is the chart, below the folder heddle.
//
//go:embed all:heddle
var Chart embed.FS
