// Package overload shows what a waypoint does with more than it can serve: the built program, in a cgroup with little memory, under
// clients that take nothing, send much and end nothing, and under more requests than its processor has time for. What is
// too much is shed and counted, and what is normal is served again as soon as it is over. It holds no code of its own. Root is needed.
package overload
