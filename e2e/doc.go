// Package e2e has the end-to-end tests: a local mesh of the real programs, two
// nodes, real servers and clients, judged from outside by captures and by what
// the programs say. It holds no code of its own; e2e/testbed is what the tests
// stand on. Root is needed.
package e2e
