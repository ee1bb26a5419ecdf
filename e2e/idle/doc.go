// Package idle holds the test of a connection that says nothing for longer than
// ten minutes. It is a package of its own because it takes that long: CI runs it
// beside everything else. Root is needed.
package idle
