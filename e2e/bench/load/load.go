// Package load has the generators that no ready-made program offers: requests at
// a fixed rate that are timed from when they were due, and connections that are
// opened and then only held. Each runs as a process of its own in a pod, by Main,
// and prints one line of JSON. They know nothing of meshes.
package load

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"time"
)

// Main runs the generator that the first argument names: "rate", "hold" or
// "accept". Hold and accept go on until in ends.
func Main(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("load: want rate, hold or accept")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	address := flags.String("address", "", "IPv4 host:port")
	connections := flags.Int("connections", 32, "how many connections")
	rate := flags.Int("rate", 1600, "requests per second")
	duration := flags.Duration("duration", 4*time.Second, "how long")
	sheds := flags.Bool("sheds", false, "an answer of 503 is no error")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "rate":
		timed, err := Rate(RateConfig{Address: *address, Connections: *connections, PerSecond: *rate, Duration: *duration, Sheds: *sheds})
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(timed)
	case "hold":
		return Hold(*address, *connections, in, out)
	case "accept":
		return Accept(*address, in)
	}
	return fmt.Errorf("load: %q is no generator: want rate, hold or accept", args[0])
}
