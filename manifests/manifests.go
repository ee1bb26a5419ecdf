// Package manifests has what Heddle is on Kubernetes, as one Helm chart: the folder
// heddle; and the Gateway API's definitions, which are not Heddle's own. It decides
// nothing and renders nothing. The files in plain, and
// kustomization.yaml, are what the chart says with its own values, written by
// `make generate`; change the chart, not them.
package manifests

import "embed"

//go:generate go run ../cmd/heddle/internal/chart/plain .

// Chart is the chart, below the folder heddle.
//
//go:embed all:heddle
var Chart embed.FS

// GatewayAPI has the definitions of the Gateway API's kinds that the operator reads, below
// the folder gateway-api: as sigs.k8s.io/gateway-api releases them, standard channel.
//
//go:embed gateway-api
var GatewayAPI embed.FS
