package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"
)

// envLaunch makes the test binary a launcher, for tests that let the launcher die: it brings a bare lab up in the
// directory that the variable names, attached, says "up" and waits.
const envLaunch = "LAB_TEST_LAUNCH"

// TestMain lets the test binary serve as its own lab binary.
func TestMain(m *testing.M) {
	Hidden()
	if dir := os.Getenv(envLaunch); dir != "" {
		launchAndWait(dir)
	}
	os.Exit(m.Run())
}

func launchAndWait(dir string) {
	topology, err := ParseTopology("launch", []byte("subnets: [{name: left, prefixes: [10.1.0.0/24]}]\nnodes: [{name: a, addresses: [10.1.0.9], processes: []}]"))
	if err == nil {
		_, err = Up(context.Background(), Options{Name: "launch", StateDir: dir, Topology: topology, Attached: true})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("up")
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt) // to wait for nothing at all is a deadlock to Go, when it notices
	<-ended
}
