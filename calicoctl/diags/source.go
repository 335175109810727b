package diags

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// source is how an Item is filled.
type source = func(context.Context, io.Writer) error

// Program is what a program says. One that the machine does not have is an error that names it.
func Program(name string, args ...string) source {
	return func(ctx context.Context, w io.Writer) error {
		path, err := exec.LookPath(name)
		for _, dir := range []string{"/usr/sbin", "/sbin"} { // which not everybody's path has
			if err != nil {
				path, err = exec.LookPath(filepath.Join(dir, name))
			}
		}
		if err != nil {
			return fmt.Errorf("program %s is not installed here", name)
		}
		var said bytes.Buffer
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = w, &said, time.Second
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w %s", name, err, strings.TrimSpace(said.String()))
		}
		return nil
	}
}

// Files is what several files say, each below its name. Those that are missing are left out; with none there is an error.
func Files(patterns ...string) source {
	return func(_ context.Context, w io.Writer) error {
		found := 0
		var failed []error
		for _, pattern := range patterns {
			names, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			for _, name := range names {
				text, err := os.ReadFile(name)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				found++
				if _, err := fmt.Fprintf(w, "%s: %s\n", name, bytes.TrimSpace(text)); err != nil {
					return err
				}
			}
		}
		if found == 0 && len(failed) == 0 {
			return fmt.Errorf("there is no %s", strings.Join(patterns, ", "))
		}
		return errors.Join(failed...)
	}
}

// Tail is the end of a file, at most so many bytes of it.
func Tail(name string, most int64) source {
	return func(_ context.Context, w io.Writer) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if skip := info.Size() - most; skip > 0 {
			if _, err := f.Seek(skip, io.SeekStart); err != nil {
				return err
			}
			fmt.Fprintf(w, "(%d bytes before this are left out)\n", skip)
		}
		_, err = io.Copy(w, io.LimitReader(f, most)) // it may be growing
		return err
	}
}

// Names are the files below directories, with size and time, and nothing of what is in them.
func Names(dirs ...string) source {
	return func(_ context.Context, w io.Writer) error {
		var missing []error
		for _, dir := range dirs {
			err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
				return err
			})
			missing = append(missing, err)
		}
		return errors.Join(missing...)
	}
}

// URL is what a daemon says over HTTP at the first of several addresses where one does. Every answer counts: a daemon that is not
// ready says why.
func URL(urls ...string) source {
	return func(ctx context.Context, w io.Writer) error {
		client := http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, DisableKeepAlives: true}}
		var failed []error
		for _, url := range slices.Compact(urls) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			answer, err := client.Do(request)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			defer answer.Body.Close()
			if answer.StatusCode == http.StatusNotFound {
				failed = append(failed, fmt.Errorf("%s: %s", url, answer.Status))
				continue
			}
			if answer.StatusCode != http.StatusOK {
				fmt.Fprintf(w, "%s\n", answer.Status)
			}
			_, err = io.Copy(w, answer.Body)
			return err
		}
		return errors.Join(failed...)
	}
}
