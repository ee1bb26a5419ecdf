//go:build tools

// Package h2spec pins the conformance suite of HTTP/2 that TestH2Spec builds and runs.
package h2spec

import _ "github.com/summerwind/h2spec"
