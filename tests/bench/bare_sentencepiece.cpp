// The speed of the SentencePiece library alone: compare_tokenizing.py sets `ttt prepare` against it.
//
//   bare_sentencepiece MODEL FILE THREADS    FILE: documents, each ended by a NUL
//
// Prints the seconds that encoding takes, with the texts in memory and the ids thrown away.

#include <sentencepiece_processor.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  sentencepiece::SentencePieceProcessor processor;
  if (!processor.Load(argv[1]).ok()) return 65;
  std::ifstream file(argv[2], std::ios::binary);
  std::vector<std::string> documents;
  for (std::string document; std::getline(file, document, '\0');) documents.push_back(document);
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> num_tokens = 0;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < std::stoi(argv[3]); ++i) {
    threads.emplace_back([&] {
      std::vector<int> ids;
      for (std::size_t at = next++; at < documents.size(); at = next++) {
        if (!processor.Encode(documents[at], &ids).ok()) std::abort();
        num_tokens += ids.size();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::cout << seconds.count() << ' ' << num_tokens << '\n';
}
