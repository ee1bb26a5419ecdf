// Package smuggling runs the corpus of waypoint/corpus through nginx and Envoy, as
// proxies in front of a backend that records what it reads, and compares them with how the engine, and of HTTP/2 a whole
// waypoint, reads it. The table of differences is in docs/http.md; nothing is asserted about others' readings.
package smuggling
