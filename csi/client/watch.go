package client

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Watch calls changed at once, and then whenever a record came or went, until ctx ends. What changed is for the caller to see:
// one call may stand for many changes, and there may be one too many. The directories of the home are made, also when they
// are removed meanwhile.
func (h Home) Watch(ctx context.Context, changed func()) error {
	for ctx.Err() == nil {
		if err := h.watch(ctx, changed); err != nil {
			return fmt.Errorf("watching %s: %w", h.Records, err)
		}
	}
	return nil
}

// watch returns when ctx ends, or when the directory is no longer what it was.
func (h Home) watch(ctx context.Context, changed func()) error {
	if err := h.Prepare(); err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w; fs.inotify.max_user_instances may be too low", err)
	}
	news := os.NewFile(uintptr(fd), "inotify")
	defer news.Close()
	const what = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CLOSE_WRITE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, h.Records, what); err != nil {
		return fmt.Errorf("inotify: %w; fs.inotify.max_user_watches may be too low", err)
	}
	stop := context.AfterFunc(ctx, func() { news.Close() })
	defer stop()
	watched, err := os.Stat(h.Records)
	for buffer := make([]byte, 4096); err == nil; {
		changed()
		if _, err := news.Read(buffer); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		}
		now, err := os.Stat(h.Records)
		if err != nil || !os.SameFile(watched, now) {
			return nil // another directory has the name now, or none
		}
	}
	return nil // it is gone already
}
