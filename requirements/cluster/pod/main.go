// What pods of the tests run, in one static program: `pod` waits for a signal (the "pause" of a sandbox), `pod answer`
// answers requests on $PORT, and with 503 while /tmp/unwell is there; `pod get URL` prints what is answered; `pod ask URL
// FILE` makes requests until the file is there, and prints how many were answered and why others were not; `pod touch FILE`
// and `pod rm FILE` make and remove a file.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	name, rest := "pause", []string{}
	if len(os.Args) > 1 {
		name, rest = os.Args[1], os.Args[2:]
	}
	if err := run(name, rest); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string, rest []string) error {
	switch {
	case name == "pause":
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
		<-ended
	case name == "answer":
		host, _ := os.Hostname()
		http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
			if _, err := os.Stat("/tmp/unwell"); err == nil {
				answer.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprintf(answer, "%s %s\n", host, request.URL.Path)
		})
		fmt.Println("answers on port", os.Getenv("PORT"))
		return http.ListenAndServe(":"+os.Getenv("PORT"), nil)
	case name == "get" && len(rest) == 1:
		client := http.Client{Timeout: 10 * time.Second}
		answer, err := client.Get(rest[0])
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
			return err
		}
		if answer.StatusCode >= 400 {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
	case name == "ask" && len(rest) == 2:
		ask(rest[0], rest[1])
	case name == "touch" && len(rest) == 1:
		return os.WriteFile(rest[0], nil, 0o644)
	case name == "rm" && len(rest) == 1:
		return os.Remove(rest[0])
	default:
		fmt.Fprintln(os.Stderr, "usage: pod [pause|answer|get URL|ask URL FILE|touch FILE|rm FILE]")
		os.Exit(2)
	}
	return nil
}

// Each request has a connection of its own, as those of many clients have.
func ask(url string, end string) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answered := 0
	for {
		if _, err := os.Stat(end); err == nil {
			fmt.Println(answered, "answered")
			return
		}
		answer, err := client.Get(url)
		if err != nil {
			fmt.Println("failed:", err)
		} else {
			if answer.StatusCode == http.StatusOK {
				answered++
			} else {
				fmt.Println("failed:", answer.Status)
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
}
