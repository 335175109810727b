package client

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/confd/bird2"
	"github.com/muslin-net/muslin/confd/render"
)

// control is a control socket that answers as told, and keeps what it was asked.
type control struct {
	net.Listener
	answer atomic.Value // string, to "configure"
	asked  chan string
	others map[string]string // answers to other commands, in BIRD's lines without their numbers
}

func listen(t *testing.T, path string, others map[string]string) *control {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	c := &control{Listener: l, asked: make(chan string, 10), others: others}
	c.answer.Store("0002-Reading configuration from x\n0003 Reconfigured\n")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "0001 BIRD 2.0.12 ready.\n")
			line, _ := bufio.NewReader(conn).ReadString('\n')
			line = strings.TrimSpace(line)
			answer := c.answer.Load()
			other, known := c.others[line]
			switch {
			case known:
				answer = "1000-" + strings.ReplaceAll(other, "\n", "\n ") + "\n0000 \n"
			case line == "show status":
				answer = "1000-BIRD 2.0.12\n1011-Router ID is 10.0.0.1\n Hostname is x\n Last reboot on 2026-11-21 12:03:09.507\n0013 Daemon is up and running\n"
			case line != "configure":
				answer = "9001 syntax error\n"
			}
			if !known {
				c.asked <- line
			}
			fmt.Fprint(conn, answer)
			conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return c
}

// program is a BIRD that parses as told.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bird")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

// TestBIRD2 follows the file and the socket through the life of a node.
func TestBIRD2(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	b := &BIRD2{File: filepath.Join(dir, "etc", "bird2.conf"), Socket: filepath.Join(dir, "ctl"), Program: program(t, "exit 0")}
	first := config(64512)
	first.Peers = []render.Peer{{Name: "Node_x", Type: render.NodeSpecific, Address: netip.MustParseAddr("10.0.0.2"), ASNumber: 1, Password: "hunter2"}}
	content := func() string {
		body, err := os.ReadFile(b.File)
		require.NoError(t, err)
		return string(body)
	}

	_, err := b.Apply(ctx, first, 1)
	require.ErrorContains(t, err, "BIRD does not run")
	require.NotErrorIs(t, err, ErrRefused, "it is tried again")
	require.Equal(t, string(bird2.Text(first, bird2.InService)), content(), "a BIRD that starts finds it")
	info, err := os.Stat(b.File)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode())

	ctl := listen(t, b.Socket, nil)
	done, err := b.Apply(ctx, first, 2)
	require.NoError(t, err)
	require.Equal(t, uint64(2), done.Generation)
	require.Equal(t, "configure", <-ctl.asked, "it may run something older")
	_, err = b.Apply(ctx, first, 3)
	require.NoError(t, err)
	require.Equal(t, "show status", <-ctl.asked, "nothing new, but is it alive?")

	second := first
	second.ASNumber = 64513
	b.Program = program(t, `echo "$3:12:1 syntax error near hunter2" >&2; exit 1`)
	_, err = b.Apply(ctx, second, 4)
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "syntax error near (redacted)")
	require.NotContains(t, err.Error(), "hunter2")
	require.Equal(t, string(bird2.Text(first, bird2.InService)), content(), "the last good file stays")
	entries, err := os.ReadDir(filepath.Dir(b.File))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is left beside it")

	b.Program = program(t, "exit 0")
	ctl.answer.Store("0002-Reading configuration from x\n8002 x:3:1 syntax error\n")
	_, err = b.Apply(ctx, second, 5)
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "8002 x:3:1 syntax error")
	require.Equal(t, string(bird2.Text(first, bird2.InService)), content(), "a BIRD that starts finds what the running one runs")
	require.Equal(t, "configure", <-ctl.asked)

	ctl.answer.Store("0002-Reading configuration from x\n0004 Reconfiguration in progress\n")
	_, err = b.Apply(ctx, second, 6)
	require.NoError(t, err)
	require.Equal(t, string(bird2.Text(second, bird2.InService)), content())

	b.Program = filepath.Join(dir, "absent")
	_, err = b.Apply(ctx, first, 7)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrRefused, "without BIRD nothing is known of the configuration")
	require.Equal(t, string(bird2.Text(second, bird2.InService)), content())
}
