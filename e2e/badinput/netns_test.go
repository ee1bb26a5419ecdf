package badinput

import (
	"runtime"

	"github.com/vishvananda/netns"
)

// inNetNS runs fn on a thread inside a network namespace; the thread is thrown
// away afterwards.
func inNetNS(path string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		result <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-result
}
