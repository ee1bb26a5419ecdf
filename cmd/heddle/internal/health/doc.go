// Package health looks whether all is well with a machine, an operator and
// agents, as their admin sockets tell, and says what to do about what is not. It
// asks; it changes nothing and prints nothing. A Report belongs to one goroutine.
package health
