// Package show puts what the command line has to say on a screen: aligned
// tables, colours, sizes and durations, and flows as rows or as JSON. It decides
// nothing. Its values belong to one goroutine.
package show
