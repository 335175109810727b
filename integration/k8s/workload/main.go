// Command workload is what runs in the containers of tests: it serves, asks, and keeps a conversation going. Without arguments
// it does nothing until it is told to end, as the first container of each pod does. By the names httpd and nc it does what the guide
// asks of busybox.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, as(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}

// as are the arguments, in terms of this program's own.
func as(args []string) []string {
	last := len(args) - 1
	switch filepath.Base(args[0]) {
	case "httpd": // -f -p PORT
		return []string{"serve", "-port", args[last]}
	case "nc": // -z -w SECONDS HOST PORT
		return []string{"open", "-timeout", args[last-2] + "s", net.JoinHostPort(args[last-1], args[last])}
	}
	return args[1:]
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		<-ctx.Done()
		return nil
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "how long to wait for an answer")
	port := flags.Int("port", 8080, "serve: the port of HTTP; TCP and UDP are echoed on the next one")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	of := flags.Arg(0)
	switch args[0] {
	case "serve":
		return serve(ctx, *port)
	case "get":
		return get(ctx, of, *timeout)
	case "open":
		c, err := net.DialTimeout("tcp", of, *timeout)
		if err != nil {
			return err
		}
		return c.Close()
	case "udp":
		return askUDP(of, *timeout)
	case "talk":
		return talk(ctx, of, *timeout)
	case "ls":
		return list(of)
	case "sleep":
		d, err := time.ParseDuration(of)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
		return nil
	}
	return fmt.Errorf("%q is none of serve, get URL, open HOST:PORT, udp HOST:PORT, talk HOST:PORT, ls DIR, sleep DURATION", args[0])
}

// serve tells its host name and who asks by HTTP, and echoes what comes by TCP and UDP on the next port.
func serve(ctx context.Context, port int) error {
	echo, err := net.Listen("tcp", fmt.Sprintf(":%d", port+1))
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port+1))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: fmt.Sprintf(":%d", port), ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintln(w, host, from)
		}),
	}
	context.AfterFunc(ctx, func() {
		_ = errors.Join(server.Close(), echo.Close(), packets.Close())
	})
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the other end has had enough
			}()
		}
	}()
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(buf[:n], from)
		}
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func get(ctx context.Context, url string, timeout time.Duration) (err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: timeout}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, answer.Body.Close()) }()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}

// askUDP sends one packet and wants it back.
func askUDP(to string, timeout time.Duration) (err error) {
	c, err := net.DialTimeout("udp", to, timeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("muslin")); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err == nil {
		fmt.Println(string(buf[:n]))
	}
	return err
}

// talk keeps one connection to an echo server busy until it is told to end: a word every 20 ms, which has to come back. Each
// second it writes how many did, and the longest that one took. That a word does not come back in time, or the connection ends, is
// an error.
func talk(ctx context.Context, to string, timeout time.Duration) (err error) {
	c, err := net.DialTimeout("tcp", to, timeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	fmt.Println("connected")
	tick, report := time.NewTicker(20*time.Millisecond), time.NewTicker(time.Second)
	defer tick.Stop()
	defer report.Stop()
	words, longest := 0, time.Duration(0)
	tell := func() { fmt.Printf("%d words, the longest took %d ms\n", words, longest.Milliseconds()) }
	word := make([]byte, 8)
	for {
		select {
		case <-ctx.Done():
			tell()
			return nil
		case <-report.C:
			tell()
		case <-tick.C:
			began := time.Now()
			if err := c.SetDeadline(began.Add(timeout)); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(c, "%08d", words); err != nil {
				return fmt.Errorf("after %d words: %w", words, err)
			}
			if _, err := io.ReadFull(c, word); err != nil {
				return fmt.Errorf("after %d words: %w", words, err)
			}
			words++
			longest = max(longest, time.Since(began))
		}
	}
}

// list names what is in a directory, with the kind of each entry.
func list(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		fmt.Println(e.Type().String(), e.Name())
	}
	return err
}
